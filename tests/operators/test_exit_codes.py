"""Every exit code of docs/cli.md, each by a real command in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep.errors import ClusterError, InputError, StoreError, SweepError

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SWEEP = """models: [llada-tiny]
methods: [rtn]
schemes: [w4a16-g128]
tasks: [tiny_math]
limit: 1
"""


def ends_with(*args):
    """The exit code of a command, and the last line that it wrote on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "dllm_sweep", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def test_0_when_all_is_well(bench, on_sqlite):
    assert ends_with("fsck") == (0, "")
    assert ends_with("status") == (0, "")


def test_1_when_a_check_finds_a_problem(bench, on_sqlite):
    bench.claim("rtn")
    bench.sql("UPDATE sweep SET lease_until_s = 1.0")
    assert ends_with("fsck")[0] == 1


def test_1_when_trials_have_failed(bench, on_sqlite):
    for method in ("fp", "rtn", "gptq", "awq"):
        bench.fail(method)
    bench.store.release_lease(bench.lease)
    assert ends_with("resume")[0] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("status", "dmeo"), "did you mean 'demo'?"),
        (("show", "zz"), "no trial has a key that starts with 'zz'"),
        (("launch", "nothing.yaml"), "there is no such file"),
        (("gc", "--logs-older-than", "x"), "write 12h, 30d, 2w or never"),
        (("lunch",), "did you mean 'launch'?"),
    ],
)
def test_2_for_bad_input_with_what_to_write(bench, on_sqlite, args, said):
    code, last = ends_with(*args)
    assert code == 2
    assert said in last


def test_3_without_a_store(bench, on_sqlite):
    code, last = ends_with("status", "--store", "none.db")
    assert (code, "there is no store" in last) == (3, True)


def test_3_when_another_controller_runs_the_sweep(bench, on_sqlite):
    """The holder is this very process, which lives."""
    from dllm_sweep.process import this_process

    bench.store.release_lease(bench.lease)
    bench.store.take_lease("demo", this_process(), seconds=60)
    code, last = ends_with("resume")
    assert code == 3
    assert f"is being run by process {os.getpid()}" in last


@pytest.mark.ray
def test_4_when_ray_cannot_be_reached(bench, on_sqlite):
    bench.store.release_lease(bench.lease)
    code, last = ends_with("resume", "--address", "127.0.0.1:1")
    assert code == 4
    assert "127.0.0.1:1" in last


def test_the_table_and_the_help_name_the_codes_that_errors_have(bench, on_sqlite):
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", DOCS, re.MULTILINE)}
    errors = {error.exit_code for error in (SweepError, InputError, StoreError, ClusterError)}
    assert table == errors | {0, 75, 130}
    text = " ".join(bench.cli("--help").output.split())
    told = re.search(r"Exit codes: (.*?)\. ", text + " ")[1]
    assert {int(code) for code in re.findall(r"\b(\d+)\b", told)} == table - {75}
