"""The simulator against hand-made sums, against the controller on SQLite, and in properties."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dllm_sweep.controller import Controller, Pace, Stop
from dllm_sweep.db.connect import open_store
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.process import this_process
from dllm_sweep.progress import Quiet
from dllm_sweep.records import Demand, PlannedTrial, PlannedUnit, UnitStanding, UnitTime
from dllm_sweep.simulate import World, as_stored, bound_s, forecast, load_of, simulate
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.workers.virtual_pool import Failures, VirtualClock, VirtualPool

LOAD_S = 100.0


def planned(method, tasks, *, scheme="w4a16", model="m", quantize_s=50.0, shards=1, seed=0):
    """A trial whose tasks take so many seconds each, all shards together."""
    protocol = ProtocolSpec(
        tasks=tuple(TaskSpec(name=f"t{n}") for n in range(len(tasks))), outliers=None
    )
    full = FULL_PRECISION if method == "fp" else QuantScheme.parse(scheme)
    spec = TrialSpec(
        model=ModelRef(name=model), method=method, scheme=full, protocol=protocol, seed=seed
    )
    units = [
        PlannedUnit(
            unit=Unit(kind="evaluate", task=f"t{n}", shard=shard, shards=shards),
            estimated_s=seconds / shards,
        )
        for n, seconds in enumerate(tasks)
        for shard in range(shards)
    ]
    if method != "fp":
        units.insert(0, PlannedUnit(unit=Unit(kind="quantize"), estimated_s=quantize_s))
    return PlannedTrial(
        spec=spec,
        label=f"{model} {method} {scheme} {seed}",
        units=tuple(units),
        estimated_s=LOAD_S + sum(unit.estimated_s for unit in units),
        priority=100 if method == "fp" else 0,
    )


def test_one_trial_on_one_gpu_takes_the_sum_of_its_parts():
    found = simulate([planned("rtn", [300.0, 200.0])], World(gpus=1))
    assert found.makespan_s == 100 + 50 + 300 + 200
    assert found.bound_s == found.makespan_s
    assert found.busy_s == found.makespan_s


def test_a_small_sweep_takes_what_it_takes_by_hand():
    """Two GPUs share the baseline: each loads it, t0 takes until 700 s, then GPU 2 (free at 300 s)
    begins the trial: loads and quantizes until 450 s and measures t1 (cheapest: a probe) until
    650 s, then t0 until 1250 s. GPU 1 is free at 700 s, when the trial has nothing left to share.
    """
    trials = [planned("fp", [600.0, 200.0]), planned("rtn", [600.0, 200.0])]
    found = simulate(trials, World(gpus=2))
    assert found.baselines_s == 700
    assert found.makespan_s == 1250
    when = {(key == trials[0].spec.key, unit): at_s for at_s, key, unit in found.order}
    assert when == {
        (True, "evaluate:t0"): 700,
        (True, "evaluate:t1"): 300,
        (False, "quantize"): 450,
        (False, "evaluate:t1"): 650,
        (False, "evaluate:t0"): 1250,
    }
    # (100 + 800 + 100 + 50 + 800) / 2 GPUs; the chain 100 + 50 + 600 is shorter.
    assert found.bound_s == 925


def test_an_idle_gpu_helps_with_the_shards_of_the_last_trial():
    """Alone 100 + 50 + 4 x 300 s. With two, the helper joins at 150 s and has the weights at
    250 s; of the rest, each takes two."""
    found = simulate([planned("rtn", [1200.0], shards=4)], World(gpus=2))
    assert found.makespan_s == 250 + 300 + 300


def test_workers_of_two_gpus_take_two_machines():
    pair = planned("rtn", [300.0])
    found = simulate([pair], World(gpus=2, demand_of=lambda _: Demand(gpus=2.0)))
    assert found.makespan_s == 450
    assert found.busy_s == 900


def test_halves_of_a_gpu_work_side_by_side():
    trials = [planned("rtn", [300.0], scheme=f"w{bits}a16") for bits in (3, 4)]
    half = Demand(gpus=0.5)
    assert simulate(trials, World(gpus=1, demand_of=lambda _: half)).makespan_s == 450


def test_a_demand_that_never_fits_is_an_error_and_no_endless_wait():
    with pytest.raises(RuntimeError, match="no unit is in flight"):
        simulate([planned("rtn", [1.0])], World(gpus=1, demand_of=lambda _: Demand(gpus=2.0)))


def test_a_failed_machine_costs_the_unit_in_flight_and_loading_again():
    # The seed's first machine fails between the end of quantizing and that of the task.
    failures = next(
        one
        for seed in range(1000)
        if 150 < (one := Failures(mtbf_s=1000, away_s=60, seed=seed)).lifetimes(0)() < 450
    )
    draw = failures.lifetimes(0)
    dies_s, lives_s = draw(), draw()
    found = simulate([planned("rtn", [300.0])], World(gpus=1, failures=failures))
    assert found.redone >= 1
    if lives_s > 400:
        assert found.makespan_s == pytest.approx(dies_s + 60 + 100 + 300)


def test_what_is_learnt_from_the_store_corrects_the_forecast():
    trial = planned("rtn", [300.0, 200.0])
    history = tuple(
        UnitTime(
            model="m",
            method="rtn",
            scheme="w4a16",
            kind=kind,
            task=task,
            device="virtual",
            estimated_s=10.0,
            wall_s=20.0,
        )
        for kind, task in (("quantize", ""), ("evaluate", "t0"), ("evaluate", "t1"))
    )
    found = simulate([trial], World(gpus=1, history=history))
    assert found.makespan_s == pytest.approx(100 + 2 * 550)


def test_what_is_committed_already_does_not_run_again():
    trial = planned("rtn", [300.0, 200.0])
    done = {trial.spec.key: frozenset({"quantize", "evaluate:t1"})}
    found = simulate([trial], World(gpus=1), done)
    assert [unit for _, _, unit in found.order] == ["evaluate:t0"]
    assert found.makespan_s == found.bound_s == 400


def test_a_trial_keeps_the_cut_that_the_store_has_of_it():
    trial, cut = planned("rtn", [300.0]), planned("rtn", [300.0], shards=3)
    standings = [
        UnitStanding(trial_id=1, unit=one.unit, estimated_s=one.estimated_s, done=False)
        for one in cut.units
    ]
    assert as_stored(trial, standings) == cut
    assert as_stored(trial, ()) is trial


def test_forecasts_with_chance_differ_and_repeat_with_their_seed():
    trials = [planned("rtn", [300.0, 200.0], seed=seed) for seed in range(4)]
    world = World(gpus=2, spread=0.25)
    first, again = (forecast(trials, world, 3) for _ in range(2))
    assert first == again
    assert len({run.makespan_s for run in first}) == 3


def small_sweep():
    tasks = [900.0, 500.0, 300.0, 100.0]
    trials = [planned("fp", tasks, model=model, shards=2) for model in ("m", "n")]
    trials += [
        planned(method, [1.1 * s for s in tasks], scheme=scheme, model=model, shards=2)
        for model in ("m", "n")
        for method in ("rtn", "gptq")
        for scheme in ("w2a16", "w4a16")
    ]
    return trials


@pytest.mark.parametrize("failures", [None, Failures(mtbf_s=3000, away_s=100, seed=3)])
def test_the_controller_on_sqlite_takes_as_long_as_the_simulation(tmp_path, failures):
    trials = small_sweep()
    world = World(gpus=4, failures=failures)
    simulated = simulate(trials, world)
    store, clock = open_store(tmp_path / "store.db"), VirtualClock()
    store.plan_sweep("real", "", trials)
    loads = {trial.spec.key: load_of(trial) for trial in trials}
    costs = {(t.spec.key, u.unit.key): u.estimated_s for t in trials for u in t.units}
    pool = VirtualPool(
        store=store,
        clock=clock,
        machines=4,
        failures=failures,
        seconds=lambda claim, unit, resident: (
            costs[claim.trial_key, unit.key] + (0.0 if resident else loads[claim.trial_key])
        ),
    )
    lease = store.take_lease("real", this_process(), seconds=60)
    summary = Controller(
        store=store,
        pool=pool,
        lease=lease,
        display=Quiet(),
        stop=Stop(),
        demand_of=world.demand_of,
        clock=clock,
        pace=Pace(tick_s=20, refresh_s=60, renew_s=120),
    ).run()
    store.close()
    assert summary.succeeded == len(trials)
    assert pool.committed[-1][0] == pytest.approx(simulated.makespan_s, rel=0.01)


some_trials = st.lists(
    st.tuples(
        st.sampled_from(["fp", "rtn", "gptq"]),
        st.sampled_from(["m", "n"]),
        st.lists(st.floats(1, 1500), min_size=1, max_size=4),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=60)
@given(
    rows=some_trials,
    gpus=st.integers(1, 6),
    mtbf_s=st.sampled_from([None, 2000.0, 10_000.0]),
    seed=st.integers(0, 50),
)
def test_every_unit_runs_once_and_none_before_its_weights(rows, gpus, mtbf_s, seed):
    trials = [
        planned(method, tasks, model=model, shards=shards, seed=number)
        for number, (method, model, tasks, shards) in enumerate(rows)
    ]
    failures = None if mtbf_s is None else Failures(mtbf_s=mtbf_s, away_s=100, seed=seed)
    found = simulate(trials, World(gpus=gpus, failures=failures))
    expected = {(t.spec.key, u.unit.key) for t in trials for u in t.units}
    done = [(key, unit) for _, key, unit in found.order]
    assert len(done) == len(expected)
    assert set(done) == expected
    for trial in trials:
        own = [unit for key, unit in done if key == trial.spec.key]
        assert trial.spec.is_baseline or own[0] == "quantize"
    if failures is None:
        assert found.makespan_s >= found.bound_s - 1e-6


@settings(deadline=None, max_examples=20)
@example(rows=[("fp", "m", [1.0], 1), ("fp", "m", [134.0], 4)], gpus=3)
@given(rows=some_trials, gpus=st.integers(1, 6))
def test_no_worker_is_idle_while_a_trial_waits(rows, gpus):
    trials = [
        planned(method, tasks, model=model, shards=shards, seed=number)
        for number, (method, model, tasks, shards) in enumerate(rows)
    ]
    clock = VirtualClock()
    store = MemoryStore(clock=clock)

    class Watched(VirtualPool):
        def wait(self, timeout_s):
            free = gpus - sum(seat.flight is not None for seat in self._seats.values())
            states = [row.state for row in store.trials(row_of_sweep.id)]
            assert free == 0 or "PENDING" not in states
            return super().wait(timeout_s)

    row_of_sweep = store.plan_sweep("s", "", trials)
    lease = store.take_lease("s", this_process(), seconds=1e9)
    costs = {(t.spec.key, u.unit.key): u.estimated_s for t in trials for u in t.units}
    pool = Watched(
        store=store,
        clock=clock,
        machines=gpus,
        seconds=lambda claim, unit, resident: costs[claim.trial_key, unit.key],
    )
    controller = Controller(
        store=store, pool=pool, lease=lease, display=Quiet(), stop=Stop(), clock=clock
    )
    assert controller.run().succeeded == len(trials)


def test_the_bound_is_the_longest_chain_where_gpus_abound():
    trial = planned("rtn", [300.0, 900.0])
    assert (
        bound_s(
            [trial], 100, lambda t, u: next(one.estimated_s for one in t.units if one.unit == u)
        )
        == 100 + 50 + 900
    )
    assert math.isclose(simulate([trial], World(gpus=1)).bound_s, 100 + 50 + 1200)
