"""`cancel`, `pause` and `retry` from any machine with the store's address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep.errors import Fenced
from dllm_sweep.records import EndReason, TrialState
from dllm_sweep.spec import Unit

ROOT = Path(__file__).parents[2]


def states(bench):
    return {row.method: row.state for row in bench.store.trials(1)}


def test_a_cancelled_trial_is_fenced_off_at_its_next_sign_of_life(bench):
    claim = bench.claim("rtn")
    done = bench.cli("cancel", claim.trial_key[:12])
    assert done.output == "1 trials of 'demo' cancelled\n"
    with pytest.raises(Fenced):
        bench.store.beat(claim, "w:1")
    with pytest.raises(Fenced):
        bench.commit(claim, Unit(kind="quantize"), b"w")
    assert states(bench)["rtn"] is TrialState.CANCELLED
    assert states(bench)["gptq"] is TrialState.PENDING


def test_a_cancelled_trial_is_taken_up_again_by_its_key_alone(bench):
    key = bench.trial("rtn").key[:12]
    bench.cli("cancel", key)
    assert bench.cli("retry", "--failed", "--no-run").output.startswith("0 trials")
    assert bench.cli("retry", key, "--no-run").output.startswith("1 trials")
    assert states(bench)["rtn"] is TrialState.PENDING


def test_a_paused_sweep_hands_out_nothing_until_the_pause_is_over(bench):
    assert "is paused" in bench.cli("pause").output
    assert bench.claim("rtn") is None
    assert "goes on" in bench.cli("pause", "--off").output
    assert bench.claim("rtn") is not None


def test_retry_takes_only_the_class_that_it_is_told(bench):
    bench.fail("rtn")
    bench.fail("gptq", EndReason.ERROR, error_type="Other")
    bench.sql("UPDATE attempt SET end_reason = 'TIMEOUT' WHERE trial_id = 3")
    assert bench.cli("retry", "--class", "timeout", "--no-run").output.startswith("1 trials")
    assert states(bench)["gptq"] is TrialState.PENDING
    assert states(bench)["rtn"] is TrialState.FAILED
    assert bench.cli("retry", "--class", "NONE", "--no-run").exit_code == 2


def test_verbs_touch_the_named_sweep_alone(bench):
    bench.plan("other", "rtn", "gptq", seed=4)
    assert bench.cli("cancel", "--all", "--sweep", "other").output.startswith("2 trials of 'other'")
    assert set(states(bench).values()) == {TrialState.PENDING}


def test_another_process_in_another_folder_sees_and_steers_the_sweep(bench, tmp_path_factory):
    """All it has is the address."""
    claim = bench.claim("rtn")
    bench.store.beat(claim, "w:1", "hello from afar\n", number=1)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "DLLM_SWEEP_STORE": bench.url}

    def there(*args):
        command = [sys.executable, "-m", "dllm_sweep", *args]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert "1 running" in there("status")
    assert there("cancel", claim.trial_key[:12]) == "1 trials of 'demo' cancelled\n"
    assert there("logs", claim.trial_key[:12], "--follow") == "hello from afar\n"
    assert list(elsewhere.iterdir()) == []
