import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dllm_sweep.cli import main
from dllm_sweep.db.connect import open_store
from dllm_sweep.plan import make_plan
from dllm_sweep.records import (
    Cost,
    EndReason,
    Failure,
    Holder,
    HostInfo,
    Metric,
    UnitResult,
)
from dllm_sweep.reports.leaderboard import boards, render
from dllm_sweep.sweep_file import read

ROOT = Path(__file__).parent.parent.parent
SCORES = {"fp": 0.9, "w4a16-g128": 0.88, "w3a16-g128": 0.5}
SCHEMES = ["w4a16-g128", "w3a16-g128", "w8a8"]


@pytest.fixture
def folder(workplace):
    """A finished sweep in the working folder: a baseline, two results, one failure."""
    data = {
        "models": ["toy"],
        "methods": ["rtn"],
        "schemes": SCHEMES,
        "tasks": ["own.yaml"],
        "calibration": "text.txt",
        "outliers": False,
    }
    (workplace / "sweep.yaml").write_text(json.dumps(data))
    fill()
    return workplace


def fill():
    plan = make_plan(read("sweep.yaml"))
    store = open_store()
    sweep = store.plan_sweep(plan.name, plan.source, plan.trials)
    holder = Holder(host="here", pid=1, process_started_s=1.0)
    lease = store.take_lease(plan.name, holder, seconds=60)
    host = HostInfo(host="here", pid=1, device="cpu")
    for row in store.trials(sweep.id):
        claim = store.claim(lease, row.id, f"claim-{row.id}", host)
        name = row.label.split()[-1]
        if name in SCORES:
            commit(store, claim, SCORES[name])
        else:
            store.end_attempt(claim, FAILURE)
    store.release_lease(lease)
    store.close()


def commit(store, claim, score):
    for unit in claim.trial.units():
        metric = Metric(task=unit.task, name="exact_match", value=score, stderr=0.0134, n=30)
        bits = Cost(name="average_bits", value=4.25, unit="bit")
        quantize = unit.kind == "quantize"
        result = UnitResult(
            unit=unit,
            wall_s=1.0,
            metrics=() if quantize else (metric,),
            costs=(bits,) if quantize else (),
        )
        store.commit_unit(claim, result)


FAILURE = Failure(
    reason=EndReason.ERROR,
    error_type="ValueError",
    message="no such luck",
    traceback="Traceback (most recent call last):\nValueError: no such luck\n",
    fingerprint="ValueError@x",
    unit="quantize",
    retryable=False,
)


def run(*args):
    return CliRunner().invoke(main, list(args), prog_name="dllm-sweep")


def test_the_table_has_scores_losses_and_reasons(folder):
    lines = run("leaderboard").output.splitlines()
    by_scheme = {line.split()[1]: line.split() for line in lines if line.startswith(("fp", "rtn"))}
    assert by_scheme["-"][-1] == "baseline"
    assert by_scheme["w4a16-g128"][2:] == [
        *("0.880", "±", "0.013", "0.880", "-0.020", "4.25", "moderate")
    ]
    assert by_scheme["w3a16-g128"][-1] == "significant"
    assert by_scheme["w8a8"][2:6] == ["-"] * 4
    assert "ValueError: no such luck" in " ".join(by_scheme["w8a8"])


def test_the_baseline_stands_first_and_the_best_next(folder):
    table = [line for line in run("leaderboard").output.splitlines() if line[:3] in ("fp ", "rtn")]
    assert [line.split()[1] for line in table] == ["-", "w4a16-g128", "w3a16-g128", "w8a8"]


def test_of_many_trials_the_baselines_and_the_best_are_shown(folder):
    store = open_store()
    whole, short = boards(store), boards(store, best=2)
    store.close()
    assert [board.entries for board in short] == [board.entries[:2] for board in whole]
    assert [board.left_out for board in short] == [len(b.entries) - 2 for b in whole] == [2]
    assert "2 trials more: --all lists them" in render(short, "table")
    assert "more" not in run("leaderboard", "--all").output


def test_every_format_has_the_same_trials(folder):
    listed = json.loads(run("leaderboard", "--format", "json").output)
    rows = list(csv.DictReader(io.StringIO(run("leaderboard", "--format", "csv").output)))
    marked = run("leaderboard", "--format", "markdown").output
    assert [row["trial_key"] for row in rows] == [entry["trial_key"] for entry in listed]
    assert marked.count("\n| ") == len(rows) + 2
    assert "0.880 ± 0.013" in marked


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_table_fits_its_terminal(folder, width):
    store = open_store()
    text = render(boards(store), "table", width)
    store.close()
    assert max(map(len, text.splitlines())) <= width
    assert "significant" in text


def test_a_finished_sweep_is_launched_again_without_ray(folder):
    code = (
        "import sys\nfrom dllm_sweep.cli import main\n"
        "try: main(['launch', 'sweep.yaml'])\nexcept SystemExit as end: print('code', end.code)\n"
        "print('ray' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.endswith("code 1\nFalse\n")
    assert "4 trials (3 done, 1 failed)" in done.stdout
    assert "`dllm-sweep retry --failed`" in done.stdout
    assert "0.880 ± 0.013" in done.stdout


def test_a_failed_trial_shows_its_log_and_waits_again_after_retry(folder):
    (key,) = [
        row["key"]
        for row in json.loads(run("status", "--format", "json").output)
        if row["state"] == "FAILED"
    ]
    assert "ValueError: no such luck" in run("logs", key[:10]).output
    assert "no such luck" in run("show", key[:10]).output
    done = run("retry", "--failed", "--no-run")
    assert done.output == "1 trials of 'sweep' wait again\n"
    assert "1 pending" in run("status").output


def test_a_trial_that_succeeded_is_not_run_again(folder):
    first = json.loads(run("status", "--format", "json").output)[0]["key"]
    done = run("retry", first[:10], "--no-run")
    assert done.exit_code == 2
    assert "only failed or cancelled run again" in done.stderr


def test_an_attempt_that_never_was_is_refused(folder):
    key = json.loads(run("status", "--format", "json").output)[0]["key"]
    done = run("logs", key[:10], "--attempt", "7")
    assert done.exit_code == 2
    assert "has no attempt 7 (there are: 1)" in done.stderr


def test_plan_says_what_is_done(folder):
    assert "4 trials (3 done, 1 failed)" in run("plan", "sweep.yaml").output


def test_launching_a_changed_file_mentions_what_an_older_one_left(folder):
    run("retry", "--failed", "--no-run")
    text = (folder / "sweep.yaml").read_text()
    (folder / "sweep.yaml").write_text(text.replace("{", '{"limit": 1, ', 1))
    from dllm_sweep.reports.plans import launch_note
    from dllm_sweep.standings import standings
    from dllm_sweep.stored import stored_trials

    plan = make_plan(read("sweep.yaml"))
    rows = stored_trials(None, plan.name)
    assert "1 unfinished trials of an earlier version" in launch_note(
        plan, standings(plan, rows), rows
    )


def test_sql_reads_and_refuses_to_write(folder):
    rows = json.loads(
        run(
            "sql",
            "SELECT state, COUNT(*) AS n FROM trials GROUP BY state ORDER BY state",
            "--format",
            "json",
        ).output
    )
    assert rows == [{"state": "FAILED", "n": 1}, {"state": "SUCCEEDED", "n": 3}]
    assert run("sql", "DELETE FROM trial").exit_code == 2
    assert run("sql", "SELECT nope FROM trials").exit_code == 2


def test_pause_and_cancel_say_what_they_did(folder):
    assert "is paused" in run("pause").output
    assert "(paused)" in run("status").output
    assert "goes on" in run("pause", "--off").output
    assert run("cancel").exit_code == 2
    assert run("cancel", "--all").output == "0 trials of 'sweep' cancelled\n"
