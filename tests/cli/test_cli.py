import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dllm_sweep import __version__
from dllm_sweep.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent.parent
DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
HEAVY = ("torch", "ray", "transformers", "sqlalchemy", "pydantic", "lm_eval", "datasets", "yaml")


@pytest.fixture
def folder(workplace):
    """The working folder: a sweep file and all that it names."""
    data = {
        "models": ["toy"],
        "methods": ["rtn"],
        "schemes": ["w4a16-g128", "w8a8"],
        "tasks": ["own.yaml"],
        "calibration": "text.txt",
        "outliers": {"source": "text.txt"},
    }
    (workplace / "sweep.yaml").write_text(json.dumps(data))
    return workplace


def run(*args):
    return CliRunner().invoke(main, list(args), prog_name="dllm-sweep")


def in_a_process(*args, folder=ROOT, code=None):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *(("-c", code) if code else ("-m", "dllm_sweep")), *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def commands():
    context = click.Context(main)
    for name in COMMANDS:
        command = main.get_command(context, name)
        yield name, command
        for child, below in getattr(command, "commands", {}).items():
            yield f"{name} {child}", below


ALL_COMMANDS = dict(commands())


@pytest.mark.parametrize("name", ALL_COMMANDS)
def test_every_command_and_option_has_help_and_is_documented(name):
    command = ALL_COMMANDS[name]
    assert command.help
    assert f"dllm-sweep {name}" in DOCS
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, option.name
            assert f"`{option.opts[0]}" in DOCS, option.opts[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_line_of_help_is_there_without_the_command(name):
    assert COMMANDS[name][1] in run("--help").output


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom dllm_sweep.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    start = time.monotonic()
    done = in_a_process(code=code)
    assert done.stdout.endswith("[]\n")
    # Half a second alone; the rest is room for a busy machine.
    assert time.monotonic() - start < 2


def test_the_version_is_the_packages():
    assert run("--version").output == f"dllm-sweep, version {__version__}\n"


def test_an_unknown_command_gets_the_nearest_one():
    done = run("lanch")
    assert done.exit_code == 2
    assert "did you mean 'launch'?" in done.stderr


@pytest.mark.parametrize("command", ["plan", "launch"])
def test_a_wrong_file_ends_with_2_and_leaves_nothing_behind(folder, command):
    text = (folder / "sweep.yaml").read_text()
    (folder / "wrong.yaml").write_text(text.replace("rtn", "rnt").replace("w8a8", "w9a9"))
    before = sorted(folder.iterdir())
    done = run(command, "wrong.yaml")
    assert done.exit_code == 2
    assert [line.split(": ")[:3] for line in done.stderr.splitlines()] == [
        ["wrong.yaml", "line 1", "methods[0].name"],
        ["wrong.yaml", "line 1", "schemes[1]"],
    ]
    assert sorted(folder.iterdir()) == before


def test_plan_writes_nothing_and_counts_what_is_new(folder):
    before = sorted(folder.iterdir())
    done = run("plan", "sweep.yaml")
    assert done.exit_code == 0
    assert "sweep 'sweep': 3 trials (3 new)" in done.output
    assert "added by itself: toy fp" in done.output
    assert sorted(folder.iterdir()) == before


def test_a_plan_reads_the_same_as_json_and_csv(folder):
    listed = json.loads(run("plan", "sweep.yaml", "--format", "json").output)
    rows = list(csv.DictReader(io.StringIO(run("plan", "sweep.yaml", "--format", "csv").output)))
    assert [row["key"] for row in rows] == [entry["key"] for entry in listed]
    assert all(len(row["key"]) == 64 for row in rows)


@pytest.mark.parametrize(
    "args",
    [("status",), ("leaderboard",), ("sql", "SELECT 1"), ("show", "ab"), ("resume",), ("pause",)],
)
def test_without_a_store_a_command_says_so_and_makes_none(folder, args):
    done = run(*args)
    assert done.exit_code == 3
    assert "there is no store" in done.stderr
    assert not (folder / "dllm-sweep.db").exists()


def test_a_password_is_never_printed(folder):
    done = run("status", "--store", "postgresql://me:secret@localhost:1/none")
    assert done.exit_code == 3
    assert "secret" not in done.output + done.stderr


def test_an_interrupt_ends_with_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dllm_sweep.reports.inventory.inventory", interrupted)
    assert run("list", "schemes").exit_code == 130


def test_an_unexpected_error_is_one_line_and_debug_shows_where(monkeypatch):
    def broken(_):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("dllm_sweep.reports.inventory.inventory", broken)
    plain, debug = run("list", "schemes"), run("--debug", "list", "schemes")
    assert plain.exit_code == debug.exit_code == 1
    assert plain.stderr.count("\n") == 1
    assert "RuntimeError: two lines" in plain.stderr
    assert "Traceback" in debug.stderr


def test_init_writes_once_and_only_force_overwrites(folder):
    assert run("init", "new.yaml").exit_code == 0
    (folder / "new.yaml").write_text("mine\n")
    done = run("init", "new.yaml")
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert (folder / "new.yaml").read_text() == "mine\n"
    assert run("init", "new.yaml", "--force").exit_code == 0
    assert "models:" in (folder / "new.yaml").read_text()


@pytest.mark.parametrize(
    "kind", ["models", "methods", "schemes", "tasks", "calibrations", "maskings", "presets"]
)
def test_every_kind_lists_as_json(kind):
    done = run("list", kind, "--format", "json")
    assert done.exit_code == 0
    assert isinstance(json.loads(done.output), list)


def test_every_listed_scheme_is_one():
    from dllm_sweep.spec import QuantScheme

    for row in json.loads(run("list", "schemes", "--format", "json").output):
        assert str(QuantScheme.parse(row["scheme"])) == row["scheme"]


def test_doctor_survives_packages_that_are_not_there(folder):
    code = (
        "import sys\nfor name in ('torch', 'ray', 'lm_eval', 'transformers', 'sqlalchemy'):\n"
        "    sys.modules[name] = None\n"
        "from dllm_sweep.cli import main\nmain(['doctor', '--format', 'json'])"
    )
    done = in_a_process(code=code, folder=folder)
    found = {row["part"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["torch"]["state"] == found["store"]["state"] == "broken"
    assert found["Python"]["state"] == "ok"
    assert all(row["what to do"] for row in found.values() if row["state"] == "broken")


def test_doctor_names_a_store_that_is_something_else(folder):
    (folder / "other.db").write_text("this is no database, whatever its name says")
    done = run("doctor", "--store", "other.db", "--format", "json")
    (store,) = [row for row in json.loads(done.output) if row["part"] == "store"]
    assert done.exit_code == 1
    assert store["state"] == "broken"


def test_the_commands_leaderboard_sql_is_what_the_views_understand(folder):
    from dllm_sweep.db.connect import open_store

    store = open_store("s.db")
    queries = run("leaderboard", "--sql").output.split(";\n")
    for query in filter(str.strip, queries):
        store.query(query)
    store.close()
