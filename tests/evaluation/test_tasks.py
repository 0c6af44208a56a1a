import random
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.evaluation import tasks
from dllm_sweep.evaluation.tasks import (
    FOLDER,
    check_task_data,
    find,
    known_tasks,
    load_tasks,
    may_be_cut,
    task_digest,
    task_file,
    task_names,
)
from dllm_sweep.evaluation.tasks.facts import FACTS
from dllm_sweep.spec import TaskSpec


def test_every_yaml_file_beside_the_code_is_a_task():
    assert set(task_names()) == {path.stem for path in FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("name", [name for name in task_names() if name.startswith("tiny_")])
def test_every_task_with_data_in_the_package_loads_and_has_items(name):
    (task,) = load_tasks(TaskSpec(name=name))["tasks"].values()
    assert len(task.eval_docs) >= 200


def test_a_task_file_of_the_users_own_is_found_by_its_path(task_files):
    assert task_file(task_files["choices"]) == Path(task_files["choices"])
    (task,) = load_tasks(TaskSpec(name=task_files["choices"]))["tasks"].values()
    assert len(task.eval_docs) == 7


def test_data_beside_the_file_is_found_from_any_folder(task_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    assert load_tasks(TaskSpec(name=task_files["generation"]))["tasks"]


def test_shots_stand_in_the_prompt(task_files):
    spec = TaskSpec(name=task_files["generation"], shots=2)
    (task,) = load_tasks(spec)["tasks"].values()
    task.build_all_requests(limit=1)
    assert task.instances[0].args[0].count("A:") == 3


def test_nothing_is_written_anywhere(task_files, tmp_path):
    """A read-only home and two processes at once must both work."""
    code = (
        "from dllm_sweep.evaluation.tasks import load_tasks; from dllm_sweep.spec import TaskSpec;"
        f"load_tasks(TaskSpec(name={task_files['generation']!r}))"
    )
    home = tmp_path / "home"
    home.mkdir()
    variables = {"HOME": str(home), "HF_HOME": str(home / "hf"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True, capture_output=True)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_loading_leaves_the_global_random_state_alone(task_files):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    load_tasks(TaskSpec(name=task_files["generation"]))
    assert random.random() == expected


def test_missing_data_is_named(task_files, tmp_path):
    (tmp_path / "data" / "items.jsonl").unlink()
    with pytest.raises(InputError, match=r"items\.jsonl cannot be read"):
        load_tasks(TaskSpec(name=task_files["choices"]))


def test_a_broken_task_file_is_one_line_that_names_it(task_files):
    Path(task_files["choices"]).write_text("task: choices\noutput_type: nonsense\n")
    with pytest.raises(InputError, match=r"choices\.yaml.*cannot be loaded") as caught:
        load_tasks(TaskSpec(name=task_files["choices"]))
    assert "\n" not in str(caught.value)


def test_a_task_of_lm_eval_is_found_by_its_name(lm_eval_tasks):
    assert set(load_tasks(TaskSpec(name="choices"))["tasks"]) == {"choices"}


def test_a_tag_is_refused_with_its_tasks(lm_eval_tasks):
    with pytest.raises(InputError, match="one by one: choices, sums_again"):
        load_tasks(TaskSpec(name="tagged"))


def test_an_unknown_task_is_refused(lm_eval_tasks):
    with pytest.raises(UnknownName, match="unknown task 'no_such_task'"):
        load_tasks(TaskSpec(name="no_such_task"))


def test_listing_needs_neither_torch_nor_lm_eval():
    code = (
        "import sys; from dllm_sweep.evaluation.tasks import task_names; task_names();"
        "sys.exit(any(name in sys.modules for name in ('torch', 'lm_eval', 'datasets', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_task_has_another_digest_once_its_data_or_its_code_changes(tmp_path):
    task, data, code = (tmp_path / name for name in ("toy.yaml", "toy.jsonl", "metric.py"))
    task.write_text("dataset_kwargs: {data_files: {test: toy.jsonl}}\nm: !function metric.score\n")
    data.write_text('{"a": 1}\n')
    code.write_text("def score(): ...\n")
    digests = [task_digest(str(task))]
    for file in (data, code, task):
        file.write_text(file.read_text() + "\n")
        digests.append(task_digest(str(task)))
    assert len(set(digests)) == 4


def test_a_task_of_lm_eval_is_known_by_its_version():
    assert task_digest("gsm8k").startswith("lm-eval 0.")


@pytest.mark.parametrize("name", [*task_names(), *FACTS])
def test_tasks_whose_metrics_are_means_may_be_cut(name):
    assert may_be_cut(name)


@pytest.mark.parametrize("name", ["wikitext", "ifeval", "squadv2", "no_such_task"])
def test_tasks_with_other_metrics_are_not_cut(name):
    assert not may_be_cut(name)


def test_metrics_of_an_included_file_count(task_files, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("include: choices.yaml\ntask: own\n")
    assert may_be_cut(str(own))
    path = Path(task_files["choices"])
    path.write_text(path.read_text().replace("aggregation: mean", "aggregation: median"))
    assert not may_be_cut(str(own))


def test_whether_a_task_may_be_cut_is_told_without_lm_eval():
    code = (
        "import sys; from dllm_sweep.evaluation.tasks import may_be_cut; may_be_cut('gsm8k');"
        "print([name for name in ('lm_eval', 'torch', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_tasks_files_are_its_own_and_those_beside_it_that_it_names(task_files):
    path = Path(task_files["choices"])
    named = tasks.task_files(path)
    assert named == (path, path.parent / "data" / "items.jsonl")
    code = [file.name for file in tasks.task_files(FOLDER / "tiny_code.yaml")]
    assert code == ["tiny_code.jsonl", "tiny_code.yaml", "tiny_code_metric.py"]


def test_known_tasks_are_the_packages_and_the_studys_with_where_their_rows_lie():
    found = known_tasks()
    assert set(found) == {*task_names(), *FACTS}
    assert found["tiny_math"] == "with the package"
    assert found["mmlu"] == "hub (cais/mmlu), or a folder named by `data`"


def test_a_group_without_a_score_is_refused_before_it_runs(task_files, tmp_path):
    group = tmp_path / "bare.yaml"
    group.write_text("group: bare\ntask: [choices]\n")
    with pytest.raises(InputError, match="a group without a score of its own"):
        check_task_data(TaskSpec(name=str(group)))


@pytest.mark.parametrize(
    ("member", "complaint"), [("no_such", "'no_such' is no task"), ("{task: choices}", "by name")]
)
def test_a_member_that_a_group_cannot_have_is_named(task_files, tmp_path, member, complaint):
    group = tmp_path / "broken.yaml"
    group.write_text(f"group: broken\ntask: [choices, {member}]\n")
    with pytest.raises(InputError, match=complaint):
        find(str(group))


def test_files_of_a_group_are_those_of_its_members_beside_it(task_files, tmp_path):
    group = tmp_path / "mine.yaml"
    group.write_text("group: mine\ntask: [choices, gsm8k]\n")
    names = [file.name for file in tasks.task_files(group)]
    assert sorted(names) == ["choices.yaml", "items.jsonl", "mine.yaml"]


def test_of_several_included_files_the_last_counts_and_the_own_word_most(tmp_path):
    (tmp_path / "one.yaml").write_text("a: 1\nb: 1\nc: 1\n")
    (tmp_path / "two.yaml").write_text("b: 2\nc: 2\n")
    (tmp_path / "own.yaml").write_text("include: [one.yaml, two.yaml]\ntask: own\nc: 3\n")
    assert find(str(tmp_path / "own.yaml")).config == {"a": 1, "b": 2, "c": 3, "task": "own"}
