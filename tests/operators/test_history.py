"""`show --history` and `logs`."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dllm_sweep.records import EndReason
from dllm_sweep.reports import logs
from dllm_sweep.spec import Unit
from dllm_sweep.workers import files

ROOT = Path(__file__).parents[2]


def test_the_history_has_every_change_with_who_and_why(bench):
    bench.fail("rtn", EndReason.LOST, message="its machine vanished")
    claim = bench.claim("rtn")
    bench.commit(claim, Unit(kind="quantize"), b"w")
    bench.store.cancel(1, keys=(claim.trial_key,))
    found = bench.json("show", claim.trial_key[:12], "--history")
    moves = [(row["from_state"], row["to_state"], row["actor"]) for row in found["events"]]
    assert moves == [
        (None, "PENDING", "planner"),
        ("PENDING", "RUNNING", "controller"),
        ("RUNNING", "PENDING", "owner"),
        ("PENDING", "RUNNING", "controller"),
        ("RUNNING", "CANCELLED", "user"),
    ]
    assert [row["attempt"] for row in found["events"]] == [0, 1, 1, 2, 2]
    assert "its machine vanished" in found["events"][2]["reason"]
    assert [row["end_reason"] for row in found["attempts"]] == ["LOST", "ABORTED"]
    assert all(row["seconds"] >= 0 for row in found["attempts"])
    (unit,) = found["units"]
    assert (unit["unit_key"], unit["attempt"], unit["seconds"]) == ("quantize", 2, 2.0)
    assert found["failures"][0]["reason"] == "LOST"


def test_work_that_was_superseded_stays_in_the_history(bench):
    claim = bench.claim("rtn")
    first, *rest = claim.units or claim.trial.units()
    bench.commit(claim, first, b"old")
    bench.commit(claim, rest[-1], b"old")
    bench.store.release_lease(bench.lease)
    bench.lease = bench.store.take_lease("demo", bench.build.holder, seconds=60)
    claim = bench.claim("rtn")
    bench.commit(claim, first, b"other weights")
    units = bench.json("show", claim.trial_key[:12], "--history")["units"]
    assert [bool(row["superseded"]) for row in units] == [True, True, False]
    text = bench.cli("show", claim.trial_key[:12], "--history").output
    assert text.count("superseded") == 1 + 2
    assert bench.cli(
        "show", claim.trial_key[:12], "--history", "--format", "csv"
    ).output.startswith("at_s,attempt,from_state")


def test_a_log_is_read_from_its_files_where_they_are(bench):
    claim = bench.fail("rtn", traceback="Traceback of the fault", message="no luck")
    usual = files.log_path(bench.root, claim.trial_id, claim.trial_key, 1)
    usual.parent.mkdir(parents=True)
    for worker in ("node-1.7", "node-2.9"):
        usual.with_name(f"attempt-1.{worker}.log").write_text(f"text of {worker}\n")
    text = bench.cli("logs", claim.trial_key[:12]).output
    assert "==> attempt-1.node-1.7 <==\ntext of node-1.7\n" in text
    assert "==> attempt-1.node-2.9 <==\ntext of node-2.9\n" in text
    assert text.endswith("Traceback of the fault\nquantize: ValueError: no luck\n")


def test_from_another_machine_the_log_comes_out_of_the_store(bench):
    claim = bench.claim("rtn")
    for worker, number in (("node-1:7", 1), ("node-2:9", 1), ("node-1:7", 2)):
        bench.store.beat(claim, worker, f"piece {number} of {worker}\n", number=number)
    bench.store.end_attempt(claim, bench.build.failure(), log_path="/gone/attempt-1.log")
    text = bench.cli("logs", claim.trial_key[:12]).output
    assert text.startswith(
        "piece 1 of node-1:7\n\n==> attempt 1, node-2:9 <==\npiece 1 of node-2:9\n"
        "\n==> attempt 1, node-1:7 <==\npiece 2 of node-1:7\n"
    )
    assert "ValueError: wrong shape" in text


def test_an_attempt_without_any_log_says_where_was_looked(bench):
    claim = bench.succeed("rtn")
    done = bench.cli("logs", claim.trial_key[:12])
    assert done.exit_code == 2
    assert "neither in" in done.stderr


def test_following_prints_what_comes_and_ends_with_the_trial(bench):
    claim = bench.claim("rtn")
    bench.store.beat(claim, "w:1", "first\n", number=1)
    steps = iter(
        [
            lambda: bench.store.beat(claim, "w:1", "second\n", number=2),
            lambda: bench.store.end_attempt(claim, bench.build.failure()),
        ]
    )
    detail = bench.store.trial_detail(claim.trial_key)
    texts = logs.follow(bench.store, detail, claim.trial_id, None, pause=lambda _: next(steps)())
    assert "".join(texts) == "first\nsecond\n"
    assert list(steps) == []


def test_following_one_attempt_leaves_the_others_out(bench):
    claim = bench.claim("rtn")
    bench.store.beat(claim, "w:1", "first attempt\n", number=1)
    bench.store.end_attempt(claim, bench.build.failure(EndReason.LOST))
    claim = bench.claim("rtn")
    bench.store.beat(claim, "w:1", "second attempt\n", number=1)
    bench.cli("cancel", "--all")
    done = bench.cli("logs", claim.trial_key[:12], "--follow", "--attempt", "2")
    assert done.output == "second attempt\n"
    done = bench.cli("logs", claim.trial_key[:12], "--follow")
    assert done.output == "first attempt\n\n==> attempt 2, w:1 <==\nsecond attempt\n"


@pytest.mark.parametrize("command", ["logs", "status"])
def test_ctrl_c_ends_following_and_watching_without_a_traceback(bench, on_sqlite, command):
    claim = bench.claim("rtn")
    bench.store.beat(claim, "w:1", "a line\n", number=1)
    args = (
        ("logs", claim.trial_key[:12], "--follow") if command == "logs" else ("status", "--watch")
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "dllm_sweep", *args],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killer = threading.Timer(60, process.kill)
    killer.start()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    killer.cancel()
    assert (process.returncode, errors.strip()) == (130, "dllm-sweep: interrupted")
