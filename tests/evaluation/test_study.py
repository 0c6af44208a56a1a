"""The study's ten tasks: a model that knows the answers scores 1, one that does not scores 0."""

import ast
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path

import lm_eval
import pytest

from dllm_sweep import presets
from dllm_sweep.db.shards import merge
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.evaluation.scoring import score_task
from dllm_sweep.evaluation.tasks import FOLDER, check_task_data, definition, loading
from dllm_sweep.evaluation.tasks.code_metric import mbpp_examples
from dllm_sweep.evaluation.tasks.facts import FACTS
from dllm_sweep.spec import TaskSpec, Unit
from tests.evaluation.oracle import Oracle

DATA = str(Path(__file__).parents[1] / "data" / "tasks")
STOCK = Path(lm_eval.__file__).parent / "tasks"
PAPER = presets.load("paper")
QUICK = {"minerva_math": 1, "humaneval": 3, "mbpp": 3}
"""Items of the tasks whose scoring runs programs or algebra."""


def spec_of(name, **options):
    settings = PAPER.settings(name, "llada")
    usual = {"shots": settings.shots, "metric": settings.metric, "limit": QUICK.get(name)}
    return TaskSpec(name=name, data=DATA, **{**usual, **options})


@pytest.mark.parametrize("name", PAPER.tasks)
def test_a_model_that_knows_the_answers_scores_one(name):
    result = score_task(Oracle(), spec_of(name))
    assert {metric.value for metric in result.metrics} == {1.0}
    assert [metric.primary for metric in result.metrics].index(True) == 0
    assert {sample.score for sample in result.samples} == {1.0}


@pytest.mark.parametrize(
    "name", [*sorted({*PAPER.tasks} - {"minerva_math"}), "minerva_math_algebra"]
)
def test_a_model_that_is_always_wrong_scores_zero(name):
    result = score_task(Oracle(right=False), spec_of(name, limit=3))
    assert {metric.value for metric in result.metrics} == {0.0}


def test_the_instructed_form_takes_the_code_up_to_the_closing_fence():
    class Chatty(Oracle):
        def generate_until(self, requests):
            return [f"{answer}\n```\nIt works so." for answer in super().generate_until(requests)]

    result = score_task(Chatty(), spec_of("humaneval_instruct", limit=3))
    assert result.metrics[0].value == 1.0


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("arc_challenge", ["acc_norm", "acc"]),
        ("gsm8k", ["exact_match,flexible-extract", "exact_match,strict-match"]),
        ("humaneval", ["pass@1"]),
        ("mbpp", ["pass_at_1"]),
    ],
)
def test_metrics_have_lm_evals_names_and_the_one_asked_for_comes_first(name, metrics):
    found = score_task(Oracle(), spec_of(name, limit=1)).metrics
    assert [metric.name for metric in found] == metrics


def test_a_metric_that_a_task_does_not_have_is_refused():
    with pytest.raises(UnknownName, match="unknown metric of task 'piqa' 'f1'"):
        score_task(Oracle(), spec_of("piqa", limit=1, metric="f1"))


@pytest.mark.parametrize(
    ("name", "metric"), [("piqa", "f1"), ("gsm8k", "exact_match"), ("mmlu", "acc_norm")]
)
def test_such_a_metric_is_refused_before_anything_runs(name, metric):
    with pytest.raises(UnknownName, match=f"unknown metric of task '{name}' '{metric}'"):
        check_task_data(spec_of(name, metric=metric))


@pytest.mark.parametrize("name", PAPER.tasks)
def test_the_study_passes_the_check_before_it_runs(name):
    check_task_data(spec_of(name))


@pytest.mark.parametrize(
    ("name", "shots", "mark"),
    [
        ("mmlu", 5, "\nAnswer:"),
        ("gsm8k", 4, "Question:"),
        ("mbpp", 3, "[BEGIN]"),
        ("winogrande", 2, None),
    ],
)
def test_prompts_hold_the_examples_asked_for(name, shots, mark):
    oracle = Oracle()
    score_task(oracle, spec_of(name, shots=shots, limit=1))
    prompt = oracle.asked[0].args[0]
    assert prompt.count("\n\n") >= shots
    assert mark is None or prompt.count(mark) == shots + 1


def test_rows_that_a_task_rewrites_are_rewritten_once_and_in_silence(capfd):
    (task,) = loading.load_tasks(spec_of("hellaswag"))["tasks"].values()
    assert task.eval_docs is task.eval_docs
    assert "Map" not in capfd.readouterr().err


def test_this_is_the_lm_eval_whose_files_were_read():
    assert version("lm-eval") == "0.4.13"


@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "mbpp"])
def test_own_task_files_ask_and_cut_as_lm_evals_do(name):
    own = definition.read(FOLDER / f"{name}.yaml")
    theirs = definition.read(STOCK / name.split("_")[0] / f"{name}.yaml")
    for field in ("doc_to_text", "doc_to_target", "gen_prefix", "target_delimiter", "test_split"):
        assert own.get(field) == theirs.get(field), field
    for field in ("dataset_path", "dataset_name", "num_fewshot"):
        assert own.get(field) == theirs.get(field), field
    assert own["generation_kwargs"]["until"] == theirs["generation_kwargs"]["until"]
    filters = [one["name"] for one in own.get("filter_list", ())]
    assert filters == [one["name"] for one in theirs.get("filter_list", ())]
    ours, known = (config["metric_list"][0]["metric"] for config in (own, theirs))
    assert ours.rpartition(".")[2] == known.rpartition(".")[2]


def test_mbpps_examples_are_lm_evals():
    parsed = ast.parse((STOCK / "mbpp" / "utils.py").read_text())
    (listed,) = (one for one in parsed.body if getattr(one, "name", "") == "list_fewshot_samples")
    assert mbpp_examples() == ast.literal_eval(listed.body[0].value)


@pytest.mark.parametrize("group", ["mmlu", "minerva_math"])
def test_members_of_the_studys_groups_are_lm_evals(group):
    folder = {"mmlu": "mmlu/default", "minerva_math": "minerva_math"}[group]
    files = {path.stem for path in (STOCK / folder).glob(f"{group}_*.yaml")}
    names = [name for name, _ in FACTS[group].members]
    assert set(names) == files
    assert len(names) == len(set(names)) == {"mmlu": 57, "minerva_math": 7}[group]
    if group == "minerva_math":
        assert names == definition.read(definition.stock_file(group))["task"]


@pytest.mark.parametrize("name", list(FACTS))
def test_the_table_of_sizes_says_what_kind_of_task_it_is(name):
    found = definition.find(name)
    kinds = {one.config["output_type"] for one in found.single}
    assert kinds == {FACTS[name].output_type}


class Uneven(Oracle):
    """Knows every third item of philosophy and every second one of the other subjects."""

    def _is_key(self, request):
        step = 3 if "philosophy" in request.task_name else 2
        return super()._is_key(request) == (request.doc_id % step == 0)


def score_mmlu(shard=0, shards=1, limit=None):
    spec = spec_of("mmlu", shots=2, limit=limit)
    unit = Unit(kind="evaluate", task="mmlu", shard=shard, shards=shards)
    return score_task(Uneven(), spec, unit=unit)


def test_a_groups_score_is_the_mean_over_all_items_of_its_members():
    group, *members = score_mmlu(limit=7).metrics
    assert (group.task, group.n, group.primary) == ("mmlu", 21, True)
    assert [(one.task, one.n, one.primary) for one in members] == [
        ("mmlu_abstract_algebra", 7, False),
        ("mmlu_global_facts", 7, False),
        ("mmlu_philosophy", 7, False),
    ]
    by_size = sum(one.value * one.n for one in members) / 21
    assert group.value == pytest.approx(by_size, rel=1e-12)
    assert group.tally == reduce(add, [one.tally for one in members])


@pytest.mark.parametrize("shards", [2, 7])
def test_shards_of_a_group_merge_to_the_bits_of_the_uncut_group(shards):
    whole = score_mmlu()
    parts = [score_mmlu(shard, shards) for shard in range(shards)]
    unit = Unit(kind="evaluate", task="mmlu", shards=shards)
    merged = merge(unit, [metric for part in parts for metric in part.metrics])
    by_name = {(one.task, one.name): one for one in merged}
    assert len(by_name) == len(whole.metrics) == 4
    for metric in whole.metrics:
        found = by_name[metric.task, metric.name]
        assert (found.value, found.stderr, found.n) == (metric.value, metric.stderr, metric.n)
    answers = [
        (one.task, one.doc_id, one.prompt, one.answer) for part in parts for one in part.samples
    ]
    assert answers == [(one.task, one.doc_id, one.prompt, one.answer) for one in whole.samples]


def test_math_without_its_packages_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(loading, "_version_of", lambda package: None)
    with pytest.raises(InputError, match=r"math-verify is missing: pip install 'lm-eval\[math\]'"):
        check_task_data(spec_of("minerva_math"))
