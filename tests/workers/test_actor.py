"""The actor in this process, against a real SQLite store."""

import contextlib
import logging

import pytest

from dllm_sweep.process import this_process
from dllm_sweep.records import EndReason, TrialState
from dllm_sweep.spec import Unit
from dllm_sweep.workers import files
from dllm_sweep.workers.actor import TrialActor

QUANTIZE = Unit(kind="quantize")
METHOD = """
import os, sys
from dataclasses import dataclass
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Fails(Rtn):
    def quantize(self, model, scheme, calibration, *, seed=0, progress=lambda done, total: None):
        print("printed by the method")
        os.write(2, b"written by a C library\\n")
        raise {error}
"""


@pytest.fixture(autouse=True)
def own_logging():
    """The actor sets the root logger up for its process; here that is pytest's."""
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    yield
    root.handlers[:] = kept
    root.setLevel(level)


def run(actor, claim, unit):
    """Run a unit with streams on the descriptors 1 and 2, as in a process of its own."""
    with (
        open(1, "w", closefd=False) as out,
        open(2, "w", closefd=False) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        return actor.run(claim, unit)


@pytest.fixture
def failing_claim(claim_of, make_trial, tmp_path):
    def make(error):
        (tmp_path / "own.py").write_text(METHOD.format(error=error))
        return claim_of(make_trial(f"{tmp_path / 'own.py'}:Fails"))

    return make


@pytest.fixture
def state_of(store):
    return lambda: store.trials(store.sweep("sweep").id)[0]


def test_a_trial_runs_to_its_end_and_leaves_a_log_and_no_weights(
    store, options, claim_of, make_trial, state_of
):
    claim, actor = claim_of(make_trial()), TrialActor(store, options)
    ends = [run(actor, claim, unit).state for unit in claim.trial.units()]
    assert ends == [TrialState.RUNNING, TrialState.SUCCEEDED]
    assert state_of().units_done == 2
    log = files.log_path(options.files, claim.trial_id, claim.trial_key, 1).read_text()
    assert "committed evaluate:tiny_facts" in log
    assert list((options.files / "weights").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("ValueError('bad shape')", "ValueError"),
        ("SystemExit(3)", "SystemExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_whatever_a_method_raises_fails_its_trial_with_a_log(
    store, options, failing_claim, state_of, error, kind
):
    claim = failing_claim(error)
    outcome = run(TrialActor(store, options), claim, QUANTIZE)
    assert outcome.state is TrialState.FAILED
    assert (outcome.failure.reason, outcome.failure.error_type) == (EndReason.ERROR, kind)
    assert state_of().state is TrialState.FAILED
    log = files.log_path(options.files, claim.trial_id, claim.trial_key, 1).read_text()
    for line in ("printed by the method", "written by a C library", "Traceback"):
        assert line in log


def test_a_worker_that_was_fenced_off_drops_its_work(
    store, options, claim_of, make_trial, state_of
):
    claim, actor = claim_of(make_trial()), TrialActor(store, options)
    store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    outcome = run(actor, claim, QUANTIZE)
    assert (outcome.state, outcome.failure) == (None, None)
    assert (state_of().state, state_of().units_done) == (TrialState.PENDING, 0)


def test_an_error_of_a_worker_that_was_fenced_off_is_dropped_too(
    store, options, failing_claim, state_of
):
    claim = failing_claim("ValueError('bad shape')")
    store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    outcome = run(TrialActor(store, options), claim, QUANTIZE)
    assert (outcome.state, outcome.failure) == (None, None)
    assert state_of().state is TrialState.PENDING
