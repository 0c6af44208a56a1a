import json
import re
from pathlib import Path

import pytest

from dllm_sweep.errors import SweepFileError
from dllm_sweep.spec import DecodingSpec, QuantScheme
from dllm_sweep.sweep_file import parse, read, stored_files

GOOD = {
    "models": ["toy"],
    "methods": ["rtn"],
    "schemes": ["w4a16-g128"],
    "tasks": ["own.yaml"],
    "calibration": {"source": "text.txt"},
    "outliers": {"source": "text.txt"},
}


@pytest.fixture
def folder(tmp_path):
    """A folder with a model and a task of the user's own: what a sweep file can stand beside."""
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text(json.dumps({"model_type": "llada"}))
    (tmp_path / "own.yaml").write_text("task: own\n")
    (tmp_path / "text.txt").write_text("some words to calibrate with\n")
    return tmp_path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(SweepFileError) as caught:
        parse(text, folder / "sweep.yaml")
    return list(caught.value.problems)


def problems_with(folder: Path, **changes) -> list[str]:
    """Problems of the good file after `changes`; each problem without its line."""
    data = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    found = problems(folder, json.dumps(data, indent=1))
    return [re.sub(r"^line \d+: ", "", line) for line in found]


def good(folder: Path, **changes):
    return parse(json.dumps(GOOD | changes), folder / "sweep.yaml")


def protocol(file):
    return file.protocol_for(file.models[0])


def test_the_name_is_the_files_unless_it_is_written(folder):
    assert good(folder).name == "sweep"
    assert good(folder, name="other").name == "other"


def test_what_is_not_written_is_as_the_specs_say(folder):
    found = protocol(good(folder))
    assert found.decoding == DecodingSpec()
    assert found.outliers.text.samples == 8
    assert found.outliers.text.digest


def test_outliers_false_takes_none(folder):
    assert protocol(good(folder, outliers=False)).outliers is None


def test_one_calibration_stands_for_a_list_of_it(folder):
    one = good(folder, calibration={"source": "text.txt", "samples": 4})
    listed = good(folder, calibration=[{"source": "text.txt", "samples": 4}])
    assert one.calibration == listed.calibration


def test_a_task_takes_the_files_limit_unless_it_has_its_own(folder):
    (folder / "second.yaml").write_text("task: second\n")
    tasks = [{"name": "own.yaml", "limit": 5}, "second.yaml"]
    first, second = protocol(good(folder, limit=9, draws=3, tasks=tasks)).tasks
    assert (first.limit, second.limit, first.draws) == (5, 9, 3)


def test_paths_are_relative_to_the_sweep_file(folder, monkeypatch):
    monkeypatch.chdir("/")
    file = good(folder)
    assert file.models[0].ref(file.folder).name == str(folder / "toy")
    assert protocol(file).tasks[0].name == str(folder / "own.yaml")


def test_a_number_in_scientific_notation_is_a_number(folder):
    text = json.dumps(GOOD)[:-1] + ', "decoding": {"temperature": 1e-2}}'
    assert parse(text, folder / "s.yaml").decoding.temperature == 0.01


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modles": ["toy"]}, "modles: unknown key 'modles': did you mean 'models'?"),
        ({"models": ...}, "models is missing"),
        ({"models": []}, "models is empty: name at least one"),
        ({"models": "toy"}, "models must be a list, not 'toy'"),
        ({"models": ["nowhere"]}, "models[0].name: unknown model 'nowhere'"),
        ({"methods": ["rnt"]}, "methods[0].name: unknown method 'rnt': did you mean 'rtn'?"),
        (
            {"methods": [{"name": "gptq", "dampng": 0.1}]},
            "methods[0].dampng: unknown parameter of gptq 'dampng': did you mean 'damping'?",
        ),
        (
            {"methods": [{"name": "gptq", "damping": "much"}]},
            "methods[0].damping: parameter damping of gptq: expected a number, not 'much'",
        ),
        ({"methods": ["none.py:Mine"]}, "methods[0].name: method '"),
        ({"schemes": ...}, "schemes is missing: rtn needs at least one, such as w4a16-g128"),
        ({"schemes": ["w9a16"]}, "schemes[0]: scheme 'w9a16': w9: bits are 2 to 8"),
        ({"tasks": ["no_such_task"]}, "tasks[0].name: unknown task 'no_such_task'"),
        ({"calibration": "./none.txt"}, "calibration.source: "),
        (
            {"calibration": [{"source": "text.txt", "masking": "unifrm"}]},
            "calibration[0].masking: unknown masking 'unifrm': did you mean 'uniform'?",
        ),
        (
            {"calibration": {"source": "text.txt", "samples": 0}},
            "calibration.samples must be at least 1, not 0",
        ),
        ({"limit": "3"}, "limit must be a whole number, not '3'"),
        ({"limit": True}, "limit must be a whole number, not true"),
        ({"name": 3}, "name must be text, not 3: put it in quotes"),
        ({"seeds": []}, "seeds is empty: name at least one"),
        ({"seeds": [-1]}, "seeds[0] must be at least 0, not -1"),
        ({"dtype": "float64"}, "dtype must be 'float32', 'bfloat16' or 'float16', not 'float64'"),
        (
            {"decoding": {"gen_length": 30, "block_length": 8}},
            "decoding: block_length 8 does not divide gen_length 30",
        ),
        (
            {"decoding": {"gen_length": 32, "block_length": 8, "steps": 6}},
            "decoding: steps 6 do not divide into the 4 blocks of the window",
        ),
        (
            {"decoding": {"algorithm": "low_confidance"}},
            "decoding.algorithm: unknown decoding algorithm 'low_confidance': did you mean",
        ),
        (
            {"outliers": {"source": "text.txt", "mask_ratios": [2]}},
            "outliers.mask_ratios[0] must be at most 1, not 2",
        ),
        (
            {"outliers": {"source": "text.txt", "masking": "none"}},
            "outliers.masking: unknown key 'masking'",
        ),
        ({"resources": {"gpu": 1}}, "resources.gpu: unknown key 'gpu': did you mean 'gpus'?"),
        ({"exclude": [{"modle": "toy"}]}, "exclude[0].modle: unknown key 'modle': did you mean"),
        ({"exclude": [{}]}, "exclude[0] is an empty rule"),
        ({"exclude": [{"method": "gptq"}]}, "exclude[0].method: 'gptq' matches nothing in methods"),
        ({"include": [{"scheme": "w2*"}]}, "include[0].scheme: 'w2*' matches nothing in schemes"),
        (
            {"tasks": ["own.yaml", {"name": "own.yaml", "limit": 2}]},
            "tasks[1]: own.yaml is named before with other settings",
        ),
    ],
)
def test_a_mistake_gets_one_clear_line(folder, changes, expected):
    found = problems_with(folder, **changes)
    assert len(found) == 1
    assert found[0].startswith(expected)
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("w4a16g128", "w4a16-g128"),
        ("w4-a16-g128", "w4a16-g128"),
        ("w4a16-sym-g64", "w4a16-g64-sym"),
        ("a8w8", "w8a8"),
    ],
)
def test_a_scheme_in_another_form_gets_the_right_one_suggested(folder, written, meant):
    assert problems_with(folder, schemes=[written])[0].endswith(f"did you mean {meant!r}?")
    assert str(QuantScheme.parse(meant)) == meant


def test_all_problems_come_at_once_each_with_its_line(folder):
    text = "\n".join(
        [
            "models: [toy, nowhere]",
            "methods:",
            "  - rnt",
            "  - {name: gptq, dampng: 0.1, damping: much}",
            "schemes: [w4a16-g128, w9a16]",
            "tasks: []",
            "outliers: false",
            "calibration: {source: ./none.txt, samples: 0, masking: unifrm}",
            "seed: 1",
        ]
    )
    places = [line.split(": ")[:2] for line in problems(folder, text)]
    assert [place for place, _ in places] == [f"line {n}" for n in (1, 3, 4, 4, 5, 6, 8, 8, 8, 9)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("models: [a,\n", "line 2, column 1: not YAML: "),
        (
            "models: [toy]\nmodels: [toy]\n",
            "line 2: key 'models' is written twice (first in line 1",
        ),
        ("a: {b: 1, b: 2}\n", "line 1: key 'b' is written twice (first in line 1)"),
        ("", "the file is empty: "),
        ("- toy\n", "the file is not a mapping: "),
        ("a: \x00\n", "not YAML: "),
        ("a: 1\n---\nb: 2\n", "line 2, column 1: not YAML: "),
    ],
)
def test_what_is_no_sweep_file_at_all_gets_one_line(folder, text, expected):
    found = problems(folder, text)
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(SweepFileError, match=r"none\.yaml: there is no such file"):
        read(tmp_path / "none.yaml")


def test_a_folder_and_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(SweepFileError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "raw.yaml").write_bytes(b"name: \xff\n")
    with pytest.raises(SweepFileError, match="is not UTF-8 text"):
        read(tmp_path / "raw.yaml")


def test_an_alias_that_holds_itself_ends(folder):
    assert problems(folder, "models: &a [*a]\noutliers: false\ncalibration: ./none.txt\n")


@pytest.mark.parametrize("path", ["examples/quickstart.yaml", "dllm_sweep/cli/sweep-template.yaml"])
def test_the_files_that_we_ship_are_right(path):
    file = read(Path(__file__).parent.parent / path)
    assert protocol(file).decoding.steps == 16


@pytest.mark.parametrize("files", ["/data/sweeps", "~/sweeps", "s3://bucket/sweeps"])
def test_files_may_go_to_a_folder_or_behind_a_url(folder, files):
    assert good(folder, files=files).files == files
    assert stored_files(json.dumps(GOOD | {"files": files})) == files
    assert stored_files(json.dumps(GOOD)) is None


def test_a_folder_that_only_the_sweep_files_own_folder_leads_to_is_refused(folder):
    (problem,) = problems_with(folder, files="sweeps")
    assert problem == "files: 'sweeps' must be a whole path, or a URL such as s3://bucket/sweeps"
