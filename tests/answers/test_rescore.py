"""`rescore`: the stored scores come out of the stored answers again, to the last bit."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.replay import rescore_task
from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.evaluation.scoring import score_task
from dllm_sweep.spec import TaskSpec
from dllm_sweep.workers import samples
from tests.evaluation.oracle import Oracle

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "tests" / "data" / "tasks"
WITHOUT_TORCH = """
import importlib.util, sys
gone, find = ("torch", "ray", "transformers"), importlib.util.find_spec
class Missing:
    def find_spec(self, name, *more):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
importlib.util.find_spec = lambda name, *more: None if name in gone else find(name, *more)
"""


def test_stored_scores_come_out_again_shards_and_code_and_choices(run, run_json):
    rows = run_json("rescore", "small")
    assert {(row["trial"].split()[0], row["task"]) for row in rows} == {
        (method, task)
        for method in ("fp", "rtn")
        for task in ("tiny_code", "tiny_facts", "tiny_math")
    }
    for row in rows:
        assert (row["stored"], row["stored_n"]) == (row["rescored"], row["n"])
        assert (row["difference"], row["items_changed"], row["differs"]) == (0, 0, False)
    done = run("rescore", "small", "--task", "tiny_code")
    assert (done.exit_code, done.output.splitlines()[-1]) == (0, "2 scores, all as stored")


def test_no_model_is_loaded_and_torch_need_not_be_there(finished, key_of):
    words = ["rescore", key_of("rtn")[:12], "--store", str(finished)]
    code = f"{WITHOUT_TORCH}\nfrom dllm_sweep.cli import main\nmain({words})"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 scores, all as stored" in done.stdout


def test_a_score_that_the_answers_do_not_give_is_told(run, run_json, finished, tmp_path):
    path = tmp_path / "altered.db"
    with sqlite3.connect(finished) as source, sqlite3.connect(path) as target:
        source.backup(target)
        target.execute("UPDATE metric SET value = 0.125 WHERE task = 'tiny_facts'")
    words = ("rescore", "small", "--files", finished.parent / "store-files")
    rows = run_json(*words, store=path)
    assert {row["task"] for row in rows if row["differs"]} == {"tiny_facts"}
    for row in rows:
        assert row["difference"] == row["rescored"] - row["stored"]
    done = run(*words, store=path)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1].startswith("2 of 6 scores are not as stored")


def test_answers_that_are_gone_are_a_difference_with_a_reason(run_json, finished, tmp_path):
    path = tmp_path / "alone.db"
    with sqlite3.connect(finished) as source, sqlite3.connect(path) as target:
        source.backup(target)
    rows = run_json("rescore", "small", "--task", "tiny_math", store=path)
    assert [row["differs"] for row in rows] == [True, True]
    assert all("name their folder with --files" in row["note"] for row in rows)


def test_what_is_neither_sweep_nor_trial_is_refused(run):
    done = run("rescore", "smal")
    assert done.exit_code == 2
    assert "did you mean 'small'?" in done.output


def study_task(name, **options):
    return TaskSpec(name=name, data=str(STUDY), **options)


@pytest.mark.parametrize(
    ("name", "right"),
    [
        *(("mmlu", True), ("mmlu", False), ("minerva_math", True), ("humaneval", True)),
        *(("gsm8k", True), ("gsm8k", False), ("winogrande", True)),
    ],
)
def test_the_studys_tasks_come_out_again_groups_with_their_members(name, right, tmp_path):
    spec = study_task(name, shots=0, limit=1)
    first = score_task(Oracle(right=right), spec)
    samples.write(first.samples, tmp_path / "answers.parquet", {})
    again = rescore_task(spec, samples.read([tmp_path / "answers.parquet"]))
    assert again.metrics == first.metrics
    assert sorted(again.samples, key=repr) == sorted(first.samples, key=repr)


class Chatting(Oracle):
    tokenizer_name = "template"

    def apply_chat_template(self, turns, add_generation_prompt=True):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns) + "<assistant>"


@pytest.mark.parametrize("name", ["gsm8k", "arc_easy"])
def test_answers_to_prompts_in_a_chat_template_come_out_again(name):
    spec = study_task(name, shots=1, limit=2)
    first = score_task(Chatting(), spec, chat_template=True)
    assert all("<assistant>" in one.prompt for one in first.samples)
    again = rescore_task(spec, first.samples, chat_template=True)
    assert again.metrics == first.metrics
    with pytest.raises(InputError, match="asked otherwise"):
        rescore_task(spec, first.samples)


def test_answers_to_other_prompts_are_refused():
    spec = study_task("piqa", shots=0, limit=3)
    first = score_task(Oracle(), spec).samples
    other = (replace(first[0], requests_sha256="0" * 64), *first[1:])
    with pytest.raises(InputError, match="item 0 of piqa is asked otherwise now"):
        rescore_task(spec, other)
    with pytest.raises(InputError, match="item 2 of piqa has no stored answer"):
        rescore_task(spec, first[:-1])


REPEATED = """
task: repeated
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: generate_until
repeats: 2
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
generation_kwargs: {until: ["."]}
filter_list:
  - name: last
    filter: [{function: regex, regex_pattern: "last (\\\\d)"}, {function: take_first}]
  - name: first
    filter: [{function: regex, regex_pattern: "first (\\\\d)"}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def test_a_changed_filter_gives_other_scores_of_the_same_texts(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"question": "q", "label": "7"}')
    task = tmp_path / "repeated.yaml"
    task.write_text(REPEATED)
    stored = Sample(
        task=str(task),
        doc_id=0,
        prompt="q",
        target="7",
        output="first 1 last 7",
        repeats=("first 2 last 3",),
        answer="7",
        log_likelihoods=(),
        score=1.0,
    )
    result = rescore_task(TaskSpec(name=str(task)), [stored])
    assert [(one.name, one.value) for one in result.metrics] == [
        ("exact_match,last", 1.0),
        ("exact_match,first", 0.0),
    ]
    (again,) = result.samples
    assert (again.output, again.repeats, again.answer) == (stored.output, stored.repeats, "7")
    assert again.scores == (("exact_match,first", 0.0), ("exact_match,last", 1.0))
