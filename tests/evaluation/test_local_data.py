"""`data: DIR`: which files a task reads, what is refused, and what its key covers."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep import shipping
from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.tasks import check_task_data, data_files, hub, load_tasks, task_digest
from dllm_sweep.evaluation.tasks.data import read_rows
from dllm_sweep.spec import FULL_PRECISION, ModelRef, ProtocolSpec, TaskSpec, TrialSpec

DATA = Path(__file__).parents[1] / "data" / "tasks"
ROWS = [{"question": f"{n} + {n}?", "answer": f"so #### {2 * n}"} for n in range(6)]


@pytest.fixture
def folder(tmp_path):
    """A folder with GSM8K's rows in the layout of the documentation."""
    shutil.copytree(DATA / "gsm8k", tmp_path / "data" / "gsm8k")
    return tmp_path / "data"


def spec(folder, **options):
    return TaskSpec(name="gsm8k", data=str(folder), **{"shots": 0, **options})


def rows_of(found):
    (task,) = load_tasks(found)["tasks"].values()
    return [row["question"] for row in task.eval_docs]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.parametrize(
    "place",
    [
        "gsm8k/test.jsonl",
        "gsm8k/test.json",
        "gsm8k/test.parquet",
        "gsm8k/main/test-00000-of-00001.parquet",
        "test.jsonl",
    ],
)
def test_rows_are_found_in_each_documented_place_and_form(tmp_path, place):
    write(tmp_path / place, ROWS)
    assert rows_of(spec(tmp_path)) == [row["question"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("arc_easy", "ai2_arc/ARC-Easy/test"),
        ("hellaswag", "hellaswag/data/validation"),
        ("hellaswag", "data/validation"),
        ("humaneval", "openai_humaneval/openai_humaneval/test"),
        ("mbpp", "mbpp/full/test"),
        ("winogrande", "winogrande/winogrande_xl/validation"),
    ],
)
def test_copies_of_hub_repositories_are_read_as_they_are(tmp_path, name, place):
    split = place.rpartition("/")[2]
    rows = read_rows(DATA / name / f"{split}.jsonl")[:2]
    write(tmp_path / f"{place}-00000-of-00001.parquet", rows)
    task = TaskSpec(name=name, shots=0, data=str(tmp_path))
    check_task_data(task)
    assert data_files(task) == (tmp_path / f"{place}-00000-of-00001.parquet",)


def test_parts_of_a_parquet_data_set_are_read_in_order(tmp_path):
    for part in range(3):
        name = f"test-0000{part}-of-00003.parquet"
        write(tmp_path / "gsm8k" / name, ROWS[2 * part : 2 * part + 2])
    assert rows_of(spec(tmp_path)) == [row["question"] for row in ROWS]


@pytest.mark.parametrize("name", ["math_synthetic", "math", "minerva_math", "hendrycks_math"])
def test_math_may_lie_under_each_of_its_names(tmp_path, name):
    shutil.copytree(DATA / "math_synthetic" / "algebra", tmp_path / name / "algebra")
    files = data_files(TaskSpec(name="minerva_math", shots=0, data=str(tmp_path)))
    assert files == (tmp_path / name / "algebra" / "test.jsonl",)


def test_a_subject_of_mmlu_never_reads_the_rows_of_all(tmp_path):
    shutil.copy(DATA / "mmlu" / "philosophy" / "test.jsonl", tmp_path)
    with pytest.raises(InputError, match=r"mmlu/abstract_algebra/test\.jsonl"):
        data_files(TaskSpec(name="mmlu", data=str(tmp_path)))


def test_a_missing_split_is_named_and_another_is_never_taken_for_it(folder):
    (folder / "gsm8k" / "test.jsonl").rename(folder / "gsm8k" / "validation.jsonl")
    with pytest.raises(InputError, match=r"'gsm8k' needs \S+/gsm8k/test\.jsonl .*no such file"):
        load_tasks(spec(folder))


def test_examples_need_their_split_only_if_there_are_any(folder):
    (folder / "gsm8k" / "train.jsonl").unlink()
    assert load_tasks(spec(folder, shots=0))["tasks"]
    with pytest.raises(InputError, match=r"gsm8k/train\.jsonl .* for its 4 examples"):
        load_tasks(spec(folder, shots=4))


def test_too_few_examples_are_refused(folder):
    with pytest.raises(InputError, match=r"needs 6 rows for 6 examples .*train\.jsonl has 5"):
        load_tasks(spec(folder, shots=6))


def test_lm_eval_draws_one_example_more_where_it_leaves_out_the_item():
    with pytest.raises(InputError, match=r"needs 6 rows for 5 examples .*train\.jsonl has 5"):
        check_task_data(TaskSpec(name="piqa", data=str(DATA), shots=5))
    (task,) = load_tasks(TaskSpec(name="piqa", data=str(DATA), shots=4))["tasks"].values()
    task.build_all_requests(limit=1)
    assert task.instances[0].args[0].count("Question:") == 5


@pytest.mark.parametrize(
    ("task", "place", "row", "complaint"),
    [
        ("gsm8k", "test", {"query": "1 + 1?", "answer": "2"}, "has no field 'question' (it has:"),
        ("gsm8k", "test", {"question": "1 + 1?", "answer": 2}, "'answer' is int, not str"),
        (
            "winogrande",
            "validation",
            {"sentence": "_ is", "option1": "a", "option2": "b", "answer": 1},
            "'answer' is int, not str",
        ),
        ("piqa", "validation", {"goal": "g", "sol1": "a", "sol2": "b", "label": "1"}, "not int"),
    ],
)
def test_a_row_without_its_fields_is_named_in_one_line(tmp_path, task, place, row, complaint):
    write(tmp_path / task / f"{place}.jsonl", [row])
    with pytest.raises(InputError) as caught:
        check_task_data(TaskSpec(name=task, shots=0, data=str(tmp_path)))
    assert f"row 1 of {tmp_path / task / place}.jsonl" in str(caught.value)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("test.jsonl", "{", "cannot be read as JSON lines"),
        ("test.json", "[1]", "a row is no mapping"),
        ("test.parquet", "no parquet", "cannot be read as Parquet"),
        ("test.jsonl", "", "has no rows"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, complaint):
    write(tmp_path / "gsm8k" / "test.jsonl", [])
    (tmp_path / "gsm8k" / "test.jsonl").unlink()
    (tmp_path / "gsm8k" / name).write_text(text)
    with pytest.raises(InputError, match=complaint):
        check_task_data(spec(tmp_path))


@given(st.lists(st.fixed_dictionaries({"text": st.text(), "n": st.integers(-(2**53), 2**53)})))
def test_rows_survive_every_form(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("rows")
    for ending in ("jsonl", "json"):
        write(folder / f"rows.{ending}", rows)
        assert read_rows(folder / f"rows.{ending}") == rows


def test_a_task_that_lm_eval_loads_in_its_own_way_takes_no_local_data(folder):
    with pytest.raises(InputError, match="'squadv2' takes no local data"):
        task_digest("squadv2", str(folder / "nowhere"))


def test_the_key_covers_content_not_place(folder, tmp_path):
    here = task_digest("gsm8k", str(folder), 4)
    there = folder.rename(tmp_path / "moved")
    assert task_digest("gsm8k", str(there), 4) == here
    assert here != task_digest("gsm8k")
    write(there / "gsm8k" / "test.jsonl", ROWS)
    assert task_digest("gsm8k", str(there), 4) != here


def test_the_key_covers_examples_only_where_prompts_have_some(folder):
    without, with_some = (task_digest("gsm8k", str(folder), shots) for shots in (0, 2))
    write(folder / "gsm8k" / "train.jsonl", ROWS)
    assert task_digest("gsm8k", str(folder), 0) == without
    assert task_digest("gsm8k", str(folder), 2) != with_some


def test_the_key_of_a_group_covers_the_members_that_are_there(tmp_path):
    shutil.copytree(DATA / "mmlu" / "philosophy", tmp_path / "mmlu" / "philosophy")
    one = task_digest("mmlu", str(tmp_path), 0)
    shutil.copytree(DATA / "mmlu" / "global_facts", tmp_path / "mmlu" / "global_facts")
    assert task_digest("mmlu", str(tmp_path), 0) != one


def test_files_of_local_data_travel_and_are_found_without_their_folder(folder, monkeypatch):
    monkeypatch.setattr(shipping, "_copies", {})
    task = spec(folder, shots=2)
    trial = TrialSpec(
        model=ModelRef(name="llada-tiny"),
        method="fp",
        scheme=FULL_PRECISION,
        protocol=ProtocolSpec(tasks=(task,)),
    )
    expected, digest = rows_of(task), task_digest("gsm8k", str(folder), 2)
    shipped = [shipping.read(path) for path in shipping.paths_of(trial)]
    assert {Path(file.path).name for file in shipped} == {"test.jsonl", "train.jsonl"}
    shutil.rmtree(folder)
    shipping.unpack(shipped)
    assert rows_of(task) == expected
    assert task_digest("gsm8k", str(folder), 2) == digest
    assert [shipping.read(path) for path in shipping.paths_of(trial)] == shipped


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache of data sets."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    hub._unreachable.cache_clear()
    yield tmp_path / "cache"
    hub._unreachable.cache_clear()


@pytest.mark.parametrize("name", ["gsm8k", "mmlu", "humaneval", "boolq"])
def test_data_neither_local_nor_reachable_are_refused_in_one_line(offline, name):
    with pytest.raises(
        InputError, match=r"neither in this machine's cache nor reachable"
    ) as caught:
        check_task_data(TaskSpec(name=name))
    assert "data: DIR" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loading_such_a_task_says_the_same(offline):
    with pytest.raises(InputError, match="openai/gsm8k is neither in this machine's cache"):
        load_tasks(TaskSpec(name="gsm8k"))


def test_a_data_set_in_the_cache_needs_no_network(offline):
    made = offline / "openai___gsm8k" / "main" / "0.0.0" / "abc"
    made.mkdir(parents=True)
    (made / "dataset_info.json").write_text("{}")
    check_task_data(TaskSpec(name="gsm8k"))
    assert hub.is_cached("openai/gsm8k", "main")
    assert not hub.is_cached("openai/gsm8k", "socratic")


@pytest.mark.parametrize("name", ["tiny_facts", "squadv2"])
def test_tasks_with_data_of_their_own_pass(offline, name):
    check_task_data(TaskSpec(name=name))


OWN = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{label}}"
doc_to_choice: ["yes", "no"]
"""


@pytest.fixture
def own_task(tmp_path):
    """A task of a user's own with rows beside it."""
    path = tmp_path / "own" / "mine.yaml"
    write(path.parent / "rows.jsonl", [{"question": "2 + 2 = 4?", "label": 0}])
    path.write_text(OWN)
    return path


def test_a_task_with_rows_of_its_own_keeps_them_whatever_folder_is_named(own_task):
    task = TaskSpec(name=str(own_task), data=str(DATA))
    check_task_data(task)
    assert rows_of(task) == ["2 + 2 = 4?"]
    assert data_files(task) == ()
    assert task_digest(task.name, task.data) == task_digest(task.name)


def test_a_group_runs_members_with_rows_of_their_own_beside_those_with_local_data(own_task):
    group = own_task.with_name("group.yaml")
    listed = "task: [mmlu_philosophy, mmlu_astronomy, mine]"
    group.write_text(f"group: g\n{listed}\naggregate_metric_list: [{{metric: acc}}]\n")
    spec = TaskSpec(name=str(group), data=str(DATA), shots=0)
    assert list(load_tasks(spec)["tasks"]) == ["mmlu_philosophy", "mine"]
    assert [path.parent.name for path in data_files(spec)] == ["philosophy"]


@pytest.mark.parametrize(
    ("written", "instead", "complaint"),
    [
        ("dataset_path: json", "", r"mine\.yaml: no dataset_path"),
        ("test_split: test", "test_split: tset", "cannot be loaded: KeyError: 'tset'"),
        ("{{question}}", "{{question", "TemplateSyntaxError: unexpected end of template"),
        ("test: rows.jsonl", "test: gone.jsonl", "gone.jsonl cannot be read"),
    ],
)
def test_a_mistake_in_a_users_own_task_is_told_before_anything_runs(
    own_task, capfd, written, instead, complaint
):
    own_task.write_text(OWN.replace(written, instead))
    with pytest.raises(InputError, match=complaint) as caught:
        check_task_data(TaskSpec(name=str(own_task)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
