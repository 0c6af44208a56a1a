"""A task for running text, as lm-eval's wikitext: bounds, marked as such."""

import json
import math

import pytest

from dllm_sweep import nll_bound
from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.spec import DecodingSpec, TaskSpec

TEXTS = ["The quick brown fox jumps over it", "He is using wrap and so is she"]
TASK = """
task: pages
dataset_path: json
dataset_kwargs: {data_files: {test: pages.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
metadata: {version: 1}
"""


@pytest.fixture
def pages(tmp_path):
    (tmp_path / "pages.yaml").write_text(TASK)
    rows = "".join(json.dumps({"page": text}) + "\n" for text in TEXTS)
    (tmp_path / "pages.jsonl").write_text(rows)
    return str(tmp_path / "pages.yaml")


def test_perplexity_like_metrics_are_bounds_by_name_and_by_value(model, pages):
    spec = TaskSpec(name=pages, draws=8)
    one, many = (
        evaluate_task(model, spec, DecodingSpec(), seed=0, batch_size=size) for size in (1, 16)
    )
    words, bits = one.metrics
    assert [words.name, bits.name] == ["word_perplexity_bound", "bits_per_byte_bound"]
    assert not words.higher_is_better
    ids = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    # The harness names an item's masks by the task as lm-eval calls it.
    names = [f"{one.samples[0].task}|{number}" for number in range(2)]
    nats = sum(bound.nats for bound in nll_bound(model, ids, draws=8, items=names))
    assert words.value == pytest.approx(math.exp(nats / sum(len(text.split()) for text in TEXTS)))
    assert bits.value == pytest.approx(nats / sum(map(len, TEXTS)) / math.log(2), rel=1e-5)
    for metric, other in zip(one.metrics, many.metrics, strict=True):
        assert metric.value == pytest.approx(other.value, rel=1e-5)
    assert [sample.forwards for sample in one.samples] == [8, 8]
