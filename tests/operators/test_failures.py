"""Failures grouped by fault, with what to do."""

import csv
import io

import pytest

from dllm_sweep.records import EndReason
from dllm_sweep.reports.hints import RULES, UNKNOWN, rule_for

CASES = [
    ("GPU_OOM", "OutOfMemoryError", "CUDA out of memory. Tried to allocate 2 GiB", "GPU memory"),
    ("ERROR", "RuntimeError", "CUDA out of memory", "GPU memory"),
    ("HOST_OOM", "OutOfMemory", "the machine ran out of memory", "host memory"),
    ("ERROR", "RuntimeError", "DefaultCPUAllocator: can't allocate memory", "host memory"),
    ("ERROR", "OSError", "[Errno 28] No space left on device", "disk full"),
    ("TIMEOUT", "UnitTimeout", "unit quantize ran longer than 1800 s", "time limit"),
    ("LOST", "ProcessDied", "its machine vanished", "lost machines"),
    ("PREEMPTED", "ProcessDied", "spot notice", "lost machines"),
    ("ERROR", "QuantizationError", "q: quantized weights are NaN or infinite", "weights"),
    ("ERROR", "LinAlgError", "the input is not positive-definite", "weights"),
    ("ERROR", "LocalEntryNotFoundError", "outgoing traffic has been disabled", "not downloaded"),
    ("ERROR", "FileNotFoundError", "/data/model/config.json", "not downloaded"),
    ("ERROR", "AcceleratorError", "CUDA error: an illegal memory access", "CUDA error"),
    ("ERROR", "StoreUnavailable", "the Postgres server does not answer", "store"),
    ("ABORTED", "ProcessDied", "stopped", "stopped"),
    ("ERROR", "ValueError", "wrong shape", "unknown"),
    ("ERROR", "ValueError", "information about the inference", "unknown"),
]


@pytest.mark.parametrize(("reason", "error", "message", "kind"), CASES)
def test_a_failure_is_of_the_kind_that_tells_what_to_do(reason, error, message, kind):
    assert rule_for(reason, error, message).kind == kind


def test_every_kind_is_met_by_a_case_and_says_what_to_do_in_one_line():
    kinds = {rule.kind for rule in (*RULES, UNKNOWN)}
    assert kinds == {kind for *_, kind in CASES}
    assert all(rule.advice and "\n" not in rule.advice for rule in RULES)


@pytest.fixture
def failed(bench):
    """Two trials that failed in one place, and one that ran out of memory and waits again."""
    place = {"fingerprint": "ValueError@rtn.py:grid", "traceback": "Traceback of the fault"}
    for method in ("rtn", "gptq"):
        bench.fail(method, message=f"{method}: wrong shape\nmore", **place)
    memory = {"error_type": "OutOfMemoryError", "message": "CUDA out of memory"}
    bench.fail("awq", EndReason.GPU_OOM, fingerprint="OutOfMemoryError@lm.py:run", **memory)
    return bench


def test_the_same_fault_in_two_trials_is_one_group_and_comes_first(failed):
    shape, memory = failed.json("failures")
    assert (shape["class"], shape["failures"], shape["trials"]) == ("ERROR", 2, 2)
    assert (shape["failed_now"], shape["methods"]) == (2, "gptq rtn")
    assert shape["message"] == "gptq: wrong shape\nmore"
    assert shape["first_s"] <= shape["last_s"]
    assert (memory["class"], memory["kind"]) == ("GPU_OOM", "GPU memory")
    assert (memory["failures"], memory["failed_now"]) == (1, 0)


def test_people_read_what_where_when_and_what_to_do(failed):
    text = failed.cli("failures").output
    head, *facts = text.split("\n\n")[0].splitlines()
    assert head == "ERROR ValueError [unknown]: 2 failures in 2 trials, 2 failed for good"
    told = dict(fact.split(None, 1) for fact in facts)
    assert told["where"] == "tiny x gptq, rtn, unit quantize"
    assert told["said"] == "gptq: wrong shape more"
    assert told["last"].endswith("attempt 1 on here")
    assert "retry --failed" in told["do"]
    assert "Traceback" not in text


def test_the_traceback_of_the_last_failure_comes_on_request(failed):
    assert failed.cli("failures", "--traceback").output.count("Traceback of the fault") == 1
    assert failed.json("failures", "--traceback")[0]["traceback"] == "Traceback of the fault"


def test_csv_has_the_same_groups(failed):
    rows = list(csv.DictReader(io.StringIO(failed.cli("failures", "--format", "csv").output)))
    assert [row["class"] for row in rows] == ["ERROR", "GPU_OOM"]


def test_only_the_named_sweep_is_looked_at(failed):
    failed.plan("other", "rtn", seed=7)
    assert failed.json("failures", "other") == []
    assert "no failures" in failed.cli("failures", "other").output
    assert len(failed.json("failures", "demo")) == 2


def test_a_trial_that_succeeded_after_a_retry_no_longer_counts_as_failed(failed):
    assert failed.cli("retry", failed.trial("rtn").key[:12], "--no-run").exit_code == 0
    failed.succeed("rtn")
    (shape,) = [row for row in failed.json("failures") if row["class"] == "ERROR"]
    assert (shape["failures"], shape["trials"], shape["failed_now"]) == (2, 2, 1)
