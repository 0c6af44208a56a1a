"""`--set` on the command line."""

import json

import pytest
from click.testing import CliRunner

from dllm_sweep.cli import main


@pytest.fixture
def folder(workplace):
    text = {
        "models": ["toy"],
        "methods": ["rtn"],
        "schemes": ["w4a16-g128"],
        "tasks": ["own.yaml"],
        "outliers": False,
        "calibration": "text.txt",
    }
    (workplace / "sweep.yaml").write_text(json.dumps(text))
    return workplace


def run(*args):
    return CliRunner().invoke(main, args)


def plan(*args):
    done = run("plan", "sweep.yaml", "--format", "json", *args)
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_a_setting_changes_what_is_planned_and_not_the_file(folder):
    before = (folder / "sweep.yaml").read_text()
    first = plan()
    second = plan("--set", "limit=5", "--set", "schemes=[w8a8, w4a4]")
    assert (len(first), len(second)) == (2, 3)
    assert not {row["key"] for row in first} & {row["key"] for row in second}
    assert (folder / "sweep.yaml").read_text() == before


def test_the_same_value_set_and_written_is_the_same_plan(folder):
    set_there = plan("--set", "limit=5")
    text = json.loads((folder / "sweep.yaml").read_text()) | {"limit": 5}
    (folder / "sweep.yaml").write_text(json.dumps(text))
    assert plan() == set_there


@pytest.mark.parametrize("command", ["plan", "launch"])
def test_a_wrong_setting_ends_with_2_and_names_the_option(folder, command):
    before = sorted(folder.iterdir())
    done = run(command, "sweep.yaml", "--set", "limit=many", "--set", "schemes=[w9]")
    assert done.exit_code == 2
    named = {line.split(": ")[1] for line in done.stderr.splitlines()}
    assert named == {"--set schemes=[w9]", "--set limit=many"}
    assert sorted(folder.iterdir()) == before


def test_a_launch_without_the_data_of_a_task_leaves_nothing_behind(folder):
    (folder / "rows").mkdir()
    before = sorted(folder.iterdir())
    done = run("launch", "sweep.yaml", "--set", "tasks=[gsm8k]", "--set", "data=rows")
    assert done.exit_code == 2
    assert "task 'gsm8k' needs" in done.stderr
    assert sorted(folder.iterdir()) == before
