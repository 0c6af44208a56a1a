"""The actor in this process, against a real SQLite store."""

import contextlib
import logging
import os
import signal

import pytest

from dllm_sweep import shipping
from dllm_sweep.process import this_process
from dllm_sweep.records import EndReason, TrialState
from dllm_sweep.spec import Unit
from dllm_sweep.workers.actor import TrialActor
from dllm_sweep.workers.messages import Death
from dllm_sweep.workers.store_actor import DirectLink

QUANTIZE = Unit(kind="quantize")
METHOD = """
import os, sys
from dataclasses import dataclass
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Fails(Rtn):
    def quantize(self, model, scheme, calibration, *, seed=0, workspace=None):
        print("printed by the method")
        os.write(2, b"written by a C library\\n")
        raise {error}
"""


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """The actor sets up its process; here that is pytest's."""
    root = logging.getLogger()
    kept, level, handler = list(root.handlers), root.level, signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield
    root.handlers[:] = kept
    root.setLevel(level)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def actor(store, options, tmp_path):
    return TrialActor(DirectLink(str(tmp_path / "store.db")), options)


def log_of(options):
    (path,) = (options.files / "logs").rglob("attempt-1.*.log")
    return path.read_text()


def run(actor, claim, unit, shipped=()):
    """Run a unit with streams on the descriptors 1 and 2, as in a process of its own."""
    with (
        open(1, "w", closefd=False) as out,
        open(2, "w", closefd=False) as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        return actor.run(claim, unit, shipped)


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
    store, options, actor, claim_of, make_trial, state_of
):
    claim = claim_of(make_trial())
    ends = [run(actor, claim, unit).state for unit in claim.trial.units()]
    assert ends == [TrialState.RUNNING, TrialState.SUCCEEDED]
    assert state_of().units_done == 2
    assert "evaluate:tiny_facts took" in log_of(options)
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
    options, actor, failing_claim, state_of, error, kind
):
    claim = failing_claim(error)
    outcome = run(actor, claim, QUANTIZE)
    assert outcome.state is TrialState.FAILED
    assert (outcome.failure.reason, outcome.failure.error_type) == (EndReason.ERROR, kind)
    assert state_of().state is TrialState.FAILED
    log = log_of(options)
    for line in ("printed by the method", "written by a C library", "Traceback"):
        assert line in log


def test_a_worker_that_was_fenced_off_drops_its_work(store, actor, claim_of, make_trial, state_of):
    claim = claim_of(make_trial())
    store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    outcome = run(actor, claim, QUANTIZE)
    assert (outcome.state, outcome.failure) == (None, None)
    assert outcome.fresh_process, "it may hold weights that others have replaced"
    assert (state_of().state, state_of().units_done) == (TrialState.PENDING, 0)


def test_an_error_of_a_worker_that_was_fenced_off_is_dropped_too(
    store, actor, failing_claim, state_of
):
    claim = failing_claim("ValueError('bad shape')")
    store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    outcome = run(actor, claim, QUANTIZE)
    assert (outcome.state, outcome.failure) == (None, None)
    assert state_of().state is TrialState.PENDING


def test_what_was_printed_is_in_the_store_for_machines_that_have_no_file(
    store, actor, failing_claim
):
    claim = failing_claim("ValueError('bad shape')")
    run(actor, claim, QUANTIZE)
    chunks = store.logs(claim.trial_id)
    text = "".join(chunk.text for chunk in chunks)
    assert text.splitlines()[0].endswith(f"unit quantize of {claim.label}, attempt 1")
    for line in ("printed by the method", "written by a C library", "ValueError: bad shape"):
        assert line in text
    assert {chunk.worker for chunk in chunks} == {f"{os.uname().nodename}:{os.getpid()}"}


def test_a_unit_that_is_told_to_end_is_neither_committed_nor_the_trials_error(
    actor, failing_claim, state_of
):
    claim = failing_claim("os.kill(os.getpid(), 15)")
    death = run(actor, claim, QUANTIZE)
    assert isinstance(death, Death)
    assert (death.reason, death.machine_lost) == (EndReason.PREEMPTED, True)
    assert (state_of().state, state_of().units_done) == (TrialState.RUNNING, 0)


@pytest.mark.parametrize(
    "error",
    [
        "__import__('dllm_sweep.errors').errors.DiskFull('no space left in /data')",
        "OSError(28, 'no space left in /data')",
    ],
)
def test_a_full_disk_gives_the_trial_back_and_stops_the_run(actor, failing_claim, state_of, error):
    outcome = run(actor, failing_claim(error), QUANTIZE)
    assert outcome.stop.endswith("no space left in /data")
    assert (outcome.state, state_of().state) == (TrialState.PENDING, TrialState.PENDING)


def test_a_log_on_a_full_disk_costs_no_result(actor, claim_of, make_trial, monkeypatch):
    real = os.open

    def full_for_logs(path, flags, *rest, **options):
        if str(path).endswith(".log"):
            path, flags = "/dev/full", os.O_WRONLY
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", full_for_logs)
    claim = claim_of(make_trial())
    ends = [run(actor, claim, unit).state for unit in claim.trial.units()]
    assert ends == [TrialState.RUNNING, TrialState.SUCCEEDED]


def test_a_unit_whose_log_cannot_be_opened_says_so(actor, options, claim_of, make_trial, state_of):
    options.files.mkdir(parents=True, exist_ok=True)
    (options.files / "logs").write_text("a file where a folder is needed")
    outcome = run(actor, claim_of(make_trial()), QUANTIZE)
    assert "logs" in outcome.failure.message
    assert state_of().state is TrialState.FAILED


def test_a_worker_without_a_gpu_sees_none(actor):
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_a_file_of_the_users_comes_along_with_the_unit(
    actor, claim_of, make_trial, state_of, tmp_path
):
    path = tmp_path / "elsewhere" / "own.py"
    path.parent.mkdir()
    path.write_text(METHOD.format(error="ValueError('from the copy')"))
    claim = claim_of(make_trial(f"{path}:Fails"))
    shipped = tuple(map(shipping.read, shipping.paths_of(claim.trial)))
    path.unlink()
    outcome = run(actor, claim, QUANTIZE, shipped)
    assert outcome.failure.message == "from the copy"
