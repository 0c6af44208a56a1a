import json
from pathlib import Path

import pytest

from dllm_sweep import load_model
from dllm_sweep.evaluation.tasks import loading

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def model():
    return load_model(str(DATA / "llada-random"), device="cpu")


@pytest.fixture(scope="session")
def dream():
    return load_model(str(DATA / "dream-random"), device="cpu")


ITEMS = "\n".join(
    f'{{"question": "What is {n} plus {n}?", "answer": "{2 * n}", "label": {n % 3},'
    f' "choices": ["{n}", "{n} and {n}", "{2 * n} or so"]}}'
    for n in range(1, 8)
)

GENERATION = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: data/items.jsonl, train: data/items.jsonl}}
test_split: test
training_split: train
output_type: generate_until
doc_to_text: "{{question}}\\nA:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 1}
"""

CHOICES = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: data/items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}} A:"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1, primary_metric: acc_norm}
"""


GROUP = """
group: both
task: [choices, sums_again]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 1}
"""


@pytest.fixture
def lm_eval_tasks(task_files, tmp_path, monkeypatch):
    """An index as lm-eval's own, over a folder: a task, another one like it, their group, a tag."""
    from lm_eval.tasks import TaskManager

    data = json.dumps({"test": str(tmp_path / "data" / "items.jsonl")})
    for name in ("choices", "sums_again"):
        text = CHOICES.replace("task: choices", f"task: {name}\ntag: tagged")
        text = text.replace("{test: data/items.jsonl}", data)
        Path(tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "both.yaml").write_text(GROUP)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    manager = TaskManager(include_defaults=False, include_path=str(tmp_path))
    monkeypatch.setattr(loading, "lm_eval_tasks", lambda: manager)


@pytest.fixture
def task_files(tmp_path):
    """Write a generation and a choice task with data beside them, and give their paths."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "items.jsonl").write_text(ITEMS)
    paths = {"generation": tmp_path / "sums.yaml", "choices": tmp_path / "choices.yaml"}
    paths["generation"].write_text(GENERATION)
    paths["choices"].write_text(CHOICES)
    return {kind: str(path) for kind, path in paths.items()}
