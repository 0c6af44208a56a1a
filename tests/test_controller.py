"""The controller's loop on a real SQLite store, with workers that run in this process."""

import itertools

import pytest

from dllm_sweep.controller import Controller, Stop
from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import Fenced
from dllm_sweep.process import this_process
from dllm_sweep.progress import PlainDisplay
from dllm_sweep.records import EndReason, HostInfo, Metric, PlannedTrial, TrialState, UnitResult
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.workers import failures
from dllm_sweep.workers.messages import Death, Finished, Outcome

PROTOCOL = ProtocolSpec(tasks=(TaskSpec(name="tiny_math"),), outliers=None)


def planned(method, scheme="w4a16", model="llada-tiny", priority=0):
    full = FULL_PRECISION if method == "fp" else QuantScheme.parse(scheme)
    spec = TrialSpec(model=ModelRef(name=model), method=method, scheme=full, protocol=PROTOCOL)
    label = f"{model} fp" if method == "fp" else f"{model} {method} {scheme}"
    return PlannedTrial(spec=spec, label=label, priority=priority, estimated_s=1.0)


class HerePool:
    """Workers in this process: `work(claim, unit)` returns a result, raises, or gives a Death."""

    def __init__(self, store, work, folder, size=1):
        self.store, self.work, self.folder, self.size = store, work, folder, size
        self.queue, self.log, self.replaced = [], [], []

    def host(self, worker):
        return HostInfo(host="here", pid=worker, device="cpu")

    def submit(self, worker, claim, unit):
        self.queue.append((worker, claim, unit))
        self.log.append((claim.label, claim.attempt, unit.key))

    def wait(self, timeout_s):
        worker, claim, unit = self.queue.pop(0)
        return [Finished(worker=worker, result=self.result(claim, unit))]

    def result(self, claim, unit):
        try:
            made = self.work(claim, unit)
            if isinstance(made, Death):
                return made
            state = self.store.commit_unit(claim, made)
            return Outcome(unit=unit, wall_s=made.wall_s, state=state)
        except Fenced:
            return Outcome(unit=unit)
        except Exception as error:
            failure = failures.describe(error, unit, None)
            state = self.store.end_attempt(claim, failure)
            return Outcome(unit=unit, state=state, failure=failure)

    def replace(self, worker):
        self.replaced.append(worker)
        self.queue = [entry for entry in self.queue if entry[0] != worker]

    def log_path(self, claim):
        return self.folder / "log"

    def close(self):
        self.queue.clear()


def score(claim, unit):
    metrics = ()
    if unit.kind == "evaluate":
        metrics = (Metric(task=unit.task, name="acc", value=0.5, stderr=0.1, n=4),)
    return UnitResult(unit=unit, wall_s=1.0, metrics=metrics)


@pytest.fixture
def sweep(tmp_path, capsys):
    store = open_store(tmp_path / "store.db")
    yield Sweep(store, tmp_path)
    store.close()


class Sweep:
    def __init__(self, store, folder):
        self.store, self.folder, self.stop = store, folder, Stop()

    def plan(self, *trials):
        self.row = self.store.plan_sweep("sweep", "", trials)

    def run(self, work, *, size=1, clock=None):
        import sys

        lease = self.store.take_lease("sweep", this_process(), seconds=60, takeover=True)
        self.pool = HerePool(self.store, work, self.folder, size)
        controller = Controller(
            store=self.store,
            pool=self.pool,
            lease=lease,
            display=PlainDisplay(sys.stdout),
            stop=self.stop,
            **({"clock": clock} if clock else {}),
        )
        try:
            return controller.run()
        finally:
            self.store.release_lease(lease)

    def states(self):
        return {trial.label: trial.state for trial in self.store.trials(self.row.id)}


def test_all_units_of_all_trials_run_once_and_baselines_first(sweep):
    sweep.plan(planned("rtn"), planned("gptq"), planned("fp", priority=9))
    summary = sweep.run(score)
    assert summary.succeeded == 3
    assert summary.failed == summary.pending == 0
    assert sweep.pool.log[0] == ("llada-tiny fp", 1, "evaluate:tiny_math")
    assert len(sweep.pool.log) == len(set(sweep.pool.log)) == 5


def test_a_failing_trial_does_not_stop_its_neighbours(sweep):
    def work(claim, unit):
        if claim.trial.method == "gptq":
            raise ValueError("bad shape")
        return score(claim, unit)

    sweep.plan(planned("rtn"), planned("gptq"), planned("fp", priority=9))
    summary = sweep.run(work)
    assert (summary.succeeded, summary.failed) == (2, 1)
    assert sweep.states()["llada-tiny gptq w4a16"] is TrialState.FAILED


def test_a_worker_that_dies_is_replaced_and_only_its_unit_runs_again(sweep):
    deaths = iter([Death(reason=EndReason.LOST, message="killed")])

    def work(claim, unit):
        if unit.kind == "evaluate" and (death := next(deaths, None)):
            return death
        return score(claim, unit)

    sweep.plan(planned("rtn"))
    assert sweep.run(work).succeeded == 1
    assert sweep.pool.replaced == [0]
    assert [(attempt, unit) for _, attempt, unit in sweep.pool.log] == [
        (1, "quantize"),
        (1, "evaluate:tiny_math"),
        (2, "evaluate:tiny_math"),
    ]


def test_code_that_ends_its_process_fails_its_trial(sweep):
    sweep.plan(planned("rtn"))
    summary = sweep.run(lambda claim, unit: Death(reason=EndReason.ERROR, message="exit code 3"))
    assert summary.failed == 1
    assert sweep.store.query("SELECT log_path FROM failures").rows == (
        (str(sweep.folder / "log"),),
    )


def test_draining_finishes_the_unit_in_flight_and_leaves_the_rest_to_resume(sweep):
    def work(claim, unit):
        sweep.stop.drain = True
        return score(claim, unit)

    sweep.plan(planned("rtn"), planned("gptq"))
    summary = sweep.run(work)
    assert summary.interrupted
    assert summary.pending == 2
    assert len(sweep.pool.log) == 1

    sweep.stop = Stop()
    assert sweep.run(score).succeeded == 2
    units = [(label, unit) for label, _, unit in sweep.pool.log]
    assert len(units) == 3, "the finished unit is not run again"


def test_stopping_at_once_gives_the_trials_back(sweep):
    def work(claim, unit):
        sweep.stop.drain = sweep.stop.now = True
        return score(claim, unit)

    sweep.plan(planned("rtn"))
    assert sweep.run(work).interrupted
    assert set(sweep.states().values()) == {TrialState.PENDING}


def test_three_trials_that_fail_in_one_place_hold_the_others_of_their_method_back(sweep, capsys):
    def work(claim, unit):
        if claim.trial.method == "gptq":
            raise ValueError("always")
        return score(claim, unit)

    sweep.plan(*(planned("gptq", f"w{bits}a16") for bits in (2, 3, 4, 5, 6)), planned("rtn"))
    summary = sweep.run(work)
    assert (summary.failed, summary.pending, summary.succeeded) == (3, 2, 1)
    assert "three trials failed in the same place" in capsys.readouterr().out


def test_a_unit_over_its_time_budget_ends_its_attempt(sweep):
    class Stuck(HerePool):
        def wait(self, timeout_s):
            return [] if self.log[-1][1] == 1 else super().wait(timeout_s)

    sweep.plan(planned("rtn"))
    seconds = itertools.count(step=600)
    lease = sweep.store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    pool = Stuck(sweep.store, score, sweep.folder)
    ends = []
    sweep.stop.now = False

    class Watch(PlainDisplay):
        def trial_ended(self, trial, state, failure):
            ends.append((state, failure.reason if failure else None))
            sweep.stop.now = True

    import sys

    Controller(
        store=sweep.store,
        pool=pool,
        lease=lease,
        display=Watch(sys.stdout),
        stop=sweep.stop,
        clock=lambda: float(next(seconds)),
    ).run()
    assert ends[0][1] is EndReason.TIMEOUT
    assert pool.replaced == [0]


def test_a_second_controller_that_takes_over_fences_the_first_off(sweep):
    def work(claim, unit):
        sweep.store.take_lease("sweep", this_process(), seconds=60, takeover=True)
        return score(claim, unit)

    sweep.plan(planned("rtn"))
    with pytest.raises(Fenced):
        sweep.run(work)
    assert set(sweep.states().values()) == {TrialState.PENDING}


def test_quantizing_again_to_other_weights_runs_the_superseded_units_again(sweep):
    """A worker whose quantized weights are gone commits `quantize` again before the unit."""
    from dllm_sweep.records import Artifact

    def weights(digest):
        artifact = Artifact(kind="weights", path=f"w/{digest}", sha256=digest * 64, bytes=1)
        return UnitResult(unit=Unit(kind="quantize"), wall_s=1.0, artifacts=(artifact,))

    protocol = ProtocolSpec(tasks=(TaskSpec(name="a"), TaskSpec(name="b")), outliers=None)
    spec = TrialSpec(
        model=ModelRef(name="m"), method="rtn", scheme=QuantScheme.parse("w4a16"), protocol=protocol
    )

    def work(claim, unit):
        if unit.kind == "quantize":
            return weights("a")
        if unit.task == "b" and claim.attempt == 1:
            return Death(reason=EndReason.LOST, message="killed")
        if unit.task == "b":
            sweep.store.commit_unit(claim, weights("b"))
        return score(claim, unit)

    sweep.plan(PlannedTrial(spec=spec, label="m rtn"))
    assert sweep.run(work).succeeded == 1
    assert [unit for _, _, unit in sweep.pool.log] == [
        "quantize",
        "evaluate:a",
        "evaluate:b",
        "evaluate:b",
        "evaluate:a",
    ]


def test_a_method_that_kills_its_process_each_time_fails_after_three_deaths(sweep):
    sweep.plan(planned("rtn"), planned("fp", priority=9))

    def work(claim, unit):
        if claim.trial.method == "rtn":
            return Death(reason=EndReason.LOST, message="the process died")
        return score(claim, unit)

    summary = sweep.run(work)
    assert (summary.succeeded, summary.failed) == (1, 1)
    assert [unit for _, _, unit in sweep.pool.log].count("quantize") == 3
    (row,) = [row for row in sweep.store.trials(sweep.row.id) if row.method == "rtn"]
    assert "3 times in this unit" in row.reason


def test_machines_that_vanish_are_not_held_against_the_trial(sweep):
    deaths = iter([Death(reason=EndReason.LOST, message="gone", machine_lost=True)] * 5)
    sweep.plan(planned("rtn"))
    assert sweep.run(lambda claim, unit: next(deaths, None) or score(claim, unit)).succeeded == 1


def test_a_paused_sweep_waits_and_still_obeys_ctrl_c(sweep, capsys):
    sweep.plan(planned("rtn"))
    sweep.store.pause(sweep.row.id, True)

    class Impatient(PlainDisplay):
        def note(self, text):
            super().note(text)
            sweep.stop.drain = sweep.stop.drain or text.startswith("paused")

    import sys

    lease = sweep.store.take_lease("sweep", this_process(), seconds=60, takeover=True)
    pool = HerePool(sweep.store, score, sweep.folder)
    summary = Controller(
        store=sweep.store, pool=pool, lease=lease, display=Impatient(sys.stdout), stop=sweep.stop
    ).run()
    assert summary.pending == 1
    assert pool.log == []
    assert "pause --off" in capsys.readouterr().out
