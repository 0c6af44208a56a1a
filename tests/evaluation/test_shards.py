"""Shards of a task merge to the very bits of the uncut task."""

from functools import reduce
from operator import add

import pytest

from dllm_sweep import load_model
from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.evaluation.tasks import may_be_cut
from dllm_sweep.spec import DecodingSpec, TaskSpec, Unit
from tests.evaluation.conftest import CHOICES

DECODING = DecodingSpec(gen_length=8, steps=2, block_length=8)
MEDIAN = "{metric: acc, aggregation: median, higher_is_better: true}"


def evaluate(model, spec, shard=0, shards=1):
    unit = Unit(kind="evaluate", task=spec.name, shard=shard, shards=shards)
    return evaluate_task(model, spec, DECODING, seed=0, batch_size=4, unit=unit)


def cut(model, spec, shards):
    return [evaluate(model, spec, shard, shards) for shard in range(shards)]


def merged(parts):
    by_name = {}
    for part in parts:
        for metric in part.metrics:
            by_name.setdefault(metric.name, []).append(metric.tally)
    return {name: reduce(add, tallies) for name, tallies in by_name.items()}


@pytest.fixture(scope="module")
def tiny():
    return load_model("llada-tiny", device="cpu")


@pytest.mark.parametrize("task", ["tiny_facts", "tiny_math", "tiny_code"])
def test_eight_shards_merge_to_the_bits_of_the_uncut_task(tiny, task):
    spec = TaskSpec(name=task, limit=11, draws=2)
    whole, parts = evaluate(tiny, spec), cut(tiny, spec, 8)
    sums = merged(parts)
    for metric in whole.metrics:
        tally = sums[metric.name]
        assert tally == metric.tally
        assert (tally.mean, tally.stderr, tally.n) == (metric.value, metric.stderr, metric.n)
    answers = [(one.doc_id, one.prompt, one.answer) for part in parts for one in part.samples]
    assert answers == [(one.doc_id, one.prompt, one.answer) for one in whole.samples]


def test_examples_in_prompts_are_those_of_the_uncut_task(model, task_files):
    spec = TaskSpec(name=task_files["generation"], shots=2)
    whole, parts = evaluate(model, spec), cut(model, spec, 3)
    prompts = [one.prompt for part in parts for one in part.samples]
    assert prompts == [one.prompt for one in whole.samples]
    assert len({one.prompt.rpartition("What")[0] for one in whole.samples}) > 1, "they vary"


def test_answers_drawn_at_random_do_not_depend_on_the_cut(model, task_files):
    decoding = DecodingSpec(gen_length=8, steps=4, block_length=8, temperature=1.0)
    spec = TaskSpec(name=task_files["generation"])

    def answers(shards):
        units = [
            Unit(kind="evaluate", task=spec.name, shard=i, shards=shards) for i in range(shards)
        ]
        runs = [
            evaluate_task(model, spec, decoding, seed=3, batch_size=1, unit=unit) for unit in units
        ]
        return [one.answer for run in runs for one in run.samples]

    assert answers(1) == answers(7)


def test_shards_are_ranges_of_the_limited_items(model, task_files):
    parts = cut(model, TaskSpec(name=task_files["choices"], limit=5), 2)
    assert [[one.doc_id for one in part.samples] for part in parts] == [[0, 1], [2, 3, 4]]
    assert [part.metrics[0].n for part in parts] == [2, 3]


def test_a_metric_that_is_no_mean_is_whole_and_cannot_be_cut(model, task_files):
    path = task_files["choices"]
    with open(path) as file:
        text = file.read()
    with open(path, "w") as file:
        file.write(text.replace("{metric: acc, aggregation: mean, higher_is_better: true}", MEDIAN))
    by_name = {metric.name: metric.tally for metric in evaluate(model, TaskSpec(name=path)).metrics}
    assert by_name["acc"] is None
    assert by_name["acc_norm"] is not None
    with pytest.raises(InputError, match="cannot be cut into shards: acc is no mean"):
        evaluate(model, TaskSpec(name=path), 0, 2)


def test_a_group_is_cut_across_its_members(model, lm_eval_tasks):
    spec = TaskSpec(name="both", draws=1)
    parts = cut(model, spec, 3)
    items = [[(one.task, one.doc_id) for one in part.samples] for part in parts]
    assert [len(part) for part in items] == [4, 5, 5]
    assert [*items[0], *items[1], *items[2]] == [
        (name, n) for name in ("choices", "sums_again") for n in range(7)
    ]
    (whole, *_) = evaluate(model, spec).metrics
    assert reduce(add, [part.metrics[0].tally for part in parts]) == whole.tally


def test_a_group_that_weights_its_members_alike_cannot_be_cut(model, task_files, tmp_path):
    for name in ("one", "two"):
        text = CHOICES.replace("task: choices", f"task: {name}").replace("acc_norm}", "acc}")
        (tmp_path / f"{name}.yaml").write_text(text)
    group = tmp_path / "alike.yaml"
    listed = "[{metric: acc, weight_by_size: false}]"
    group.write_text(f"group: alike\ntask: [one, two]\naggregate_metric_list: {listed}\n")
    assert not may_be_cut(str(group))
    spec = TaskSpec(name=str(group), draws=1, limit=2)
    assert evaluate(model, spec).metrics[0].tally is None
    with pytest.raises(InputError, match="acc is no mean of its items' scores"):
        evaluate(model, spec, 0, 2)
    group.write_text(group.read_text().replace("false", "true"))
    assert may_be_cut(str(group))
    assert evaluate(model, spec).metrics[0].n == 4


def test_more_shards_than_items_are_refused(model, task_files):
    with pytest.raises(InputError, match="has 7 items: it cannot be cut into 8 shards"):
        evaluate(model, TaskSpec(name=task_files["choices"]), 0, 8)
