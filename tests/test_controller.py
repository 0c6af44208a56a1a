"""The controller's loop on stores in memory and on SQLite, with workers in this process."""

import itertools
from dataclasses import replace

import pytest

from dllm_sweep.controller import Controller, Pace, Stop
from dllm_sweep.db.connect import open_store
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.errors import DiskFull, Fenced
from dllm_sweep.process import this_process
from dllm_sweep.progress import Quiet
from dllm_sweep.racing import Race
from dllm_sweep.records import (
    Artifact,
    Demand,
    EndReason,
    HostInfo,
    Metric,
    PlannedTrial,
    PlannedUnit,
    TrialState,
    UnitResult,
)
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.tally import Tally
from dllm_sweep.workers import failures
from dllm_sweep.workers.messages import Death, Finished, Outcome, Worker

SMALL = Demand()


def planned(method, scheme="w4a16", model="llada-tiny", tasks=("tiny_math",), shards=1, priority=0):
    full = FULL_PRECISION if method == "fp" else QuantScheme.parse(scheme)
    protocol = ProtocolSpec(tasks=tuple(TaskSpec(name=task) for task in tasks), outliers=None)
    spec = TrialSpec(model=ModelRef(name=model), method=method, scheme=full, protocol=protocol)
    label = f"{model} fp" if method == "fp" else f"{model} {method} {scheme}"
    whole = [unit for unit in spec.units() if unit.kind == "quantize"]
    parts = [
        Unit(kind="evaluate", task=task, shard=shard, shards=shards)
        for task in tasks
        for shard in range(shards)
    ]
    units = tuple(PlannedUnit(unit=unit, estimated_s=10.0) for unit in (*whole, *parts))
    estimated_s = 1.0 + 10.0 * len(units)
    return PlannedTrial(
        spec=spec, label=label, priority=priority, estimated_s=estimated_s, units=units
    )


class HerePool:
    """Workers in this process: `work(claim, unit)` returns a result, raises, or gives a Death."""

    def __init__(self, store, work, folder, size=1):
        self.store, self.work, self.folder, self.size = store, work, folder, size
        self.queue, self.log, self.ended, self.up = [], [], [], {}
        self.ids = itertools.count()
        self.most = 0

    def want(self, counts):
        self.wanted = dict(counts)
        busy = {worker for worker, _, _ in self.queue}
        for number in [n for n in self.up if n not in busy]:
            if len(self.up) > sum(counts.values()):
                del self.up[number]
        for demand, number in counts.items():
            while sum(w.demand == demand for w in self.up.values()) < min(number, self.size):
                self.start(demand)
        return len(self.up)

    def start(self, demand):
        number = next(self.ids)
        versions = (("gpu", f"gpu-{number % self.size}"),)
        host = HostInfo(host="here", pid=number, device="cpu", versions=versions)
        self.up[number] = Worker(id=number, demand=demand, host=host)

    def workers(self):
        return tuple(self.up.values())

    def submit(self, worker, claim, unit):
        assert worker in self.up
        assert worker not in {busy for busy, _, _ in self.queue}
        self.queue.append((worker, claim, unit))
        self.most = max(self.most, len(self.queue))
        self.log.append((claim.label, claim.attempt, unit.key))

    def wait(self, timeout_s):
        if not self.queue:
            return []
        worker, claim, unit = self.queue.pop(0)
        result = self.result(claim, unit)
        if isinstance(result, Death):
            del self.up[worker]
        return [Finished(worker=worker, result=result)]

    def result(self, claim, unit):
        try:
            made = self.work(claim, unit)
            if isinstance(made, Death | Outcome):
                return made
            state = self.store.commit_unit(claim, made)
            return Outcome(unit=unit, wall_s=made.wall_s, state=state)
        except Fenced:
            return Outcome(unit=unit)
        except Exception as error:
            failure = failures.describe(error, unit, None)
            state = self.store.end_attempt(claim, failure)
            return Outcome(unit=unit, state=state, failure=failure)

    def end(self, worker):
        self.ended.append(worker)
        del self.up[worker]
        self.queue = [entry for entry in self.queue if entry[0] != worker]

    def log_path(self, worker):
        return self.folder / f"log-{worker}"

    def close(self):
        self.queue.clear()


class Seen(Quiet):
    """Remembers what a person would have read."""

    def __init__(self):
        self.notes, self.ends, self.left = [], [], []

    def note(self, text):
        self.notes.append(text)

    def trial_ended(self, trial, state, failure):
        self.ends.append((trial.label, state, failure.reason if failure else None))

    def worker_left(self, worker, why):
        self.left.append(why)


def score(claim, unit, value=0.5):
    metrics = ()
    artifacts = ()
    if unit.kind == "evaluate":
        tally = Tally.of((value, value))
        found = Metric(task=unit.task, name="acc", value=value, stderr=0.0, n=2, tally=tally)
        metrics = (found,)
    if unit.kind == "quantize":
        artifacts = (weights(claim.trial_key),)
    return UnitResult(unit=unit, wall_s=1.0, metrics=metrics, artifacts=artifacts)


def weights(digest):
    return Artifact(kind="weights", path=f"w/{digest}", sha256=digest, bytes=1)


@pytest.fixture(params=["memory", "sqlite"])
def sweep(tmp_path, request):
    store = MemoryStore() if request.param == "memory" else open_store(tmp_path / "store.db")
    yield Sweep(store, tmp_path)
    store.close()


class Sweep:
    def __init__(self, store, folder):
        self.store, self.folder, self.stop = store, folder, Stop()
        self.seen = Seen()

    def plan(self, *trials):
        self.row = self.store.plan_sweep("sweep", "", trials)

    def run(self, work, *, size=1, pool=None, **options):
        lease = self.store.take_lease("sweep", this_process(), seconds=60, takeover=True)
        self.pool = pool or HerePool(self.store, work, self.folder, size)
        controller = Controller(
            store=self.store,
            pool=self.pool,
            lease=lease,
            display=self.seen,
            stop=self.stop,
            **options,
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
    assert sweep.seen.left[0] == "killed"
    assert [(attempt, unit) for _, attempt, unit in sweep.pool.log] == [
        (1, "quantize"),
        (1, "evaluate:tiny_math"),
        (2, "evaluate:tiny_math"),
    ]


def test_the_units_of_a_baseline_are_shared_by_idle_workers(sweep):
    sweep.plan(planned("fp", tasks=("a", "b"), shards=3, priority=9))
    assert sweep.run(score, size=4).succeeded == 1
    assert sweep.pool.most == 4
    assert {attempt for _, attempt, _ in sweep.pool.log} == {1}
    assert len(set(sweep.pool.log)) == len(sweep.pool.log) == 6


def test_helpers_join_a_trial_only_when_its_weights_are_committed(sweep):
    known = []

    def work(claim, unit):
        known.append((unit.kind, claim.weights is not None))
        return score(claim, unit)

    sweep.plan(planned("rtn", tasks=("a", "b"), shards=3))
    assert sweep.run(work, size=3).succeeded == 1
    assert known[0] == ("quantize", False)
    assert set(known[1:]) == {("evaluate", True)}
    assert sweep.pool.most == 3


def test_a_crew_that_loses_a_member_goes_on_in_the_same_attempt(sweep):
    deaths = iter([Death(reason=EndReason.LOST, message="gone", machine_lost=True)])

    def work(claim, unit):
        return next(deaths, None) or score(claim, unit)

    sweep.plan(planned("fp", tasks=("a", "b"), shards=3, priority=9))
    assert sweep.run(work, size=3).succeeded == 1
    assert {attempt for _, attempt, _ in sweep.pool.log} == {1}
    assert len(sweep.pool.log) == 7


def test_an_error_of_one_member_ends_the_others_of_its_crew(sweep):
    def work(claim, unit):
        if unit.key == "evaluate:a":
            raise ValueError("bad item")
        return score(claim, unit)

    sweep.plan(planned("fp", tasks=("a", "b", "c"), priority=9))
    assert sweep.run(work, size=3).failed == 1
    assert len(sweep.pool.ended) == 2
    assert sweep.pool.queue == []


def test_a_lost_worker_leaves_its_own_log_with_its_failure(sweep):
    def work(claim, unit):
        if unit.key == "evaluate:a":
            (sweep.folder / "log-0").write_text("the last words of worker 0")
            return Death(reason=EndReason.LOST, message="gone", machine_lost=True)
        return score(claim, unit)

    kept = []
    lose = sweep.store.lose_worker

    def seen(claim, failure, **options):
        kept.append(failure.log_tail)
        return lose(claim, failure, **options)

    sweep.store.lose_worker = seen
    sweep.plan(planned("fp", tasks=("a", "b"), priority=9))
    sweep.run(work, size=2)
    assert kept[0] == "the last words of worker 0"


def test_code_that_ends_its_process_fails_its_trial(sweep):
    sweep.plan(planned("rtn"))
    summary = sweep.run(lambda claim, unit: Death(reason=EndReason.ERROR, message="exit code 3"))
    assert summary.failed == 1
    (row,) = sweep.store.trials(sweep.row.id)
    assert "exit code 3" in row.reason


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


def test_three_trials_that_fail_in_one_place_hold_the_others_of_their_method_back(sweep):
    def work(claim, unit):
        if claim.trial.method == "gptq":
            raise ValueError("always")
        return score(claim, unit)

    sweep.plan(*(planned("gptq", f"w{bits}a16") for bits in (2, 3, 4, 5, 6)), planned("rtn"))
    summary = sweep.run(work)
    assert (summary.failed, summary.pending, summary.succeeded) == (3, 2, 1)
    assert "three trials failed in the same place" in "".join(sweep.seen.notes)


def test_a_gpu_on_which_three_methods_fail_gets_no_more_work(sweep):
    """Worker 0 fails in its own way at whatever it gets; worker 1 succeeds."""

    class Faulty(HerePool):
        def wait(self, timeout_s):
            if self.queue:
                self.now_at = self.queue[0][0]
            return super().wait(timeout_s)

    def work(claim, unit):
        if pool.now_at == 0:
            raise ArithmeticError("flipped bit")
        return score(claim, unit)

    pool = Faulty(sweep.store, work, sweep.folder, size=2)
    methods = ("awq", "duquant", "gptq", "quarot", "rtn", "smoothquant")
    sweep.plan(*(planned(method, f"w{bits}a16") for method in methods for bits in (3, 4)))
    summary = sweep.run(work, pool=pool)
    assert (summary.failed, summary.succeeded) == (3, 9)
    assert any("GPU gpu-0" in note for note in sweep.seen.notes)


def test_a_unit_over_its_time_budget_ends_its_attempt(sweep):
    class Stuck(HerePool):
        def wait(self, timeout_s):
            return [] if self.log[-1][1] == 1 else super().wait(timeout_s)

    class Watch(Seen):
        def trial_ended(self, trial, state, failure):
            super().trial_ended(trial, state, failure)
            sweep.stop.now = True

    sweep.plan(planned("rtn"))
    seconds = itertools.count(step=600)
    sweep.seen = Watch()
    pool = Stuck(sweep.store, score, sweep.folder)
    sweep.run(score, pool=pool, clock=lambda: float(next(seconds)))
    assert sweep.seen.ends[0][2] is EndReason.TIMEOUT
    assert pool.ended == [0]


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

    def work(claim, unit):
        if unit.kind == "quantize":
            artifacts = (weights("a" * 64),)
            return UnitResult(unit=unit, wall_s=1.0, artifacts=artifacts)
        if unit.task == "b" and claim.attempt == 1:
            return Death(reason=EndReason.LOST, message="killed")
        if unit.task == "b":
            artifacts = (weights("b" * 64),)
            again = UnitResult(unit=Unit(kind="quantize"), wall_s=1.0, artifacts=artifacts)
            sweep.store.commit_unit(claim, again)
        return score(claim, unit)

    sweep.plan(planned("rtn", tasks=("a", "b")))
    assert sweep.run(work).succeeded == 1
    assert [unit for _, _, unit in sweep.pool.log] == [
        "quantize",
        "evaluate:a",
        "evaluate:b",
        "evaluate:b",
        "evaluate:a",
    ]


def test_a_result_refused_for_its_weights_runs_again_while_the_trial_is_ours(sweep):
    """One worker has quantized again to other weights; another still measures on the old ones."""
    refused = []

    def work(claim, unit):
        if unit.kind == "quantize":
            return UnitResult(unit=unit, wall_s=1.0, artifacts=(weights("a" * 64),))
        if unit.task == "b" and not refused:
            refused.append(unit)
            artifacts = (weights("b" * 64),)
            again = UnitResult(unit=Unit(kind="quantize"), wall_s=1.0, artifacts=artifacts)
            sweep.store.commit_unit(claim, again)
            return replace(score(claim, unit), weights_sha256="a" * 64)
        return score(claim, unit)

    sweep.plan(planned("rtn", tasks=("a", "b")))
    assert sweep.run(work).succeeded == 1
    assert refused
    assert {attempt for _, attempt, _ in sweep.pool.log} == {1}
    assert sorted(unit for _, _, unit in sweep.pool.log[-2:]) == ["evaluate:a", "evaluate:b"]


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


def test_a_paused_sweep_waits_and_still_obeys_ctrl_c(sweep):
    class Impatient(Seen):
        def note(self, text):
            super().note(text)
            sweep.stop.drain = sweep.stop.drain or text.startswith("paused")

    sweep.plan(planned("rtn"))
    sweep.store.pause(sweep.row.id, True)
    sweep.seen = Impatient()
    assert sweep.run(score).pending == 1
    assert sweep.pool.log == []
    assert "pause --off" in sweep.seen.notes[0]


def test_a_sweep_paused_between_two_looks_goes_on_when_the_pause_is_over(sweep):
    """The store refuses the claim; the next look says why, and a later one that it is over."""
    looks = itertools.count()
    ask = sweep.store.sweep

    def watched(name):
        if next(looks) == 3:
            sweep.store.pause(sweep.row.id, False)
        return ask(name)

    def work(claim, unit):
        if claim.trial.method == "rtn":
            sweep.store.pause(sweep.row.id, True)
        return score(claim, unit)

    sweep.plan(planned("rtn"), planned("gptq"))
    sweep.store.sweep = watched
    assert sweep.run(work, clock=ticking()).succeeded == 2


def test_a_trial_cancelled_while_it_runs_frees_its_worker_at_the_next_look(sweep):
    def work(claim, unit):
        if claim.trial.method == "rtn" and unit.kind == "quantize":
            sweep.store.cancel(sweep.row.id, keys=[claim.trial_key])
        return score(claim, unit)

    sweep.plan(planned("rtn"), planned("gptq"))
    summary = sweep.run(work)
    assert (summary.succeeded, summary.cancelled) == (1, 1)


def test_a_crew_whose_trial_is_cancelled_ends_whole(sweep):
    def work(claim, unit):
        sweep.store.cancel(sweep.row.id)
        return score(claim, unit)

    sweep.plan(planned("fp", tasks=("a", "b", "c"), shards=2, priority=9))
    assert sweep.run(work, size=3).cancelled == 1
    assert len(sweep.pool.log) == 3
    assert sweep.pool.queue == []


def test_a_trial_cancelled_in_the_middle_of_a_long_unit_ends_its_process(sweep):
    class Slow(HerePool):
        def wait(self, timeout_s):
            if self.ended or not self.queue:
                return super().wait(timeout_s)
            sweep.store.cancel(sweep.row.id)
            return []

    sweep.plan(planned("rtn"))
    pool = Slow(sweep.store, score, sweep.folder)
    assert sweep.run(score, pool=pool, clock=ticking()).cancelled == 1
    assert pool.ended == [0]
    assert sweep.seen.ends == [("llada-tiny rtn w4a16", TrialState.CANCELLED, None)]


def test_a_trial_added_while_the_last_one_runs_runs_too(sweep):
    def work(claim, unit):
        sweep.store.plan_sweep("sweep", "", [planned("gptq")])
        return score(claim, unit)

    sweep.plan(planned("rtn"))
    assert sweep.run(work).succeeded == 2


def test_a_disk_that_is_full_stops_the_run_and_charges_nobody(sweep):
    def work(claim, unit):
        failure = failures.lost(EndReason.ABORTED, "disk full", unit, None)
        state = sweep.store.end_attempt(claim, failure)
        return Outcome(unit=unit, state=state, failure=failure, stop="/data is full")

    sweep.plan(planned("rtn"), planned("gptq"))
    with pytest.raises(DiskFull, match="/data is full"):
        sweep.run(work)
    assert set(sweep.states().values()) == {TrialState.PENDING}
    assert len(sweep.pool.log) == 1


def test_a_trial_goes_only_to_a_worker_of_its_size(sweep):
    large = Demand(gpus=2.0)
    sizes = {}

    class Sized(HerePool):
        def submit(self, worker, claim, unit):
            sizes[claim.trial.model.name] = self.up[worker].demand
            super().submit(worker, claim, unit)

    sweep.plan(planned("rtn"), planned("rtn", model="dream-tiny"))
    pool = Sized(sweep.store, score, sweep.folder)
    summary = sweep.run(
        score, pool=pool, demand_of=lambda row: large if row.model == "dream-tiny" else SMALL
    )
    assert summary.succeeded == 2
    assert sizes == {"llada-tiny": SMALL, "dream-tiny": large}


def test_workers_are_wanted_only_as_long_as_there_is_work_for_them(sweep):
    wanted = []

    class Watched(HerePool):
        def want(self, counts):
            wanted.append(sum(counts.values()))
            return super().want(counts)

    sweep.plan(*(planned("rtn", f"w{bits}a16") for bits in (2, 3, 4, 5)))
    pool = Watched(sweep.store, score, sweep.folder, size=4)
    assert sweep.run(score, pool=pool).succeeded == 4
    assert wanted[0] >= 4
    assert wanted[-1] == 0


def test_a_race_gives_a_collapsed_trial_up_and_says_why(sweep):
    tasks = ("a", "b", "c", "d")

    def work(claim, unit):
        bad = claim.trial.scheme.w_bits == 2
        made = score(claim, unit, 0.05 if bad else 0.8)
        metrics = tuple(
            Metric(task=m.task, name="acc", value=m.value, stderr=0.01, n=400) for m in made.metrics
        )
        return UnitResult(unit=unit, wall_s=1.0, metrics=metrics, artifacts=made.artifacts)

    sweep.plan(
        planned("fp", tasks=tasks, priority=9),
        planned("rtn", "w2a16", tasks=tasks),
        planned("rtn", "w4a16", tasks=tasks),
    )
    pace = Pace(tick_s=0.0, refresh_s=0.0, refresh_share=1e9)
    summary = sweep.run(work, race=Race(), pace=pace)
    assert (summary.succeeded, summary.pruned) == (2, 1)
    (row,) = [r for r in sweep.store.trials(sweep.row.id) if r.state is TrialState.PRUNED]
    assert "retains less than 50% of full precision on 2 tasks" in row.reason
    assert row.scheme == "w2a16"


def ticking(step=10.0):
    """A clock that moves on whenever somebody looks at it."""
    seconds = itertools.count(step=step)
    return lambda: float(next(seconds))
