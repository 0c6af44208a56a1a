"""How long a sweep will take: the real controller on a virtual clock, before a cent is spent."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dllm_sweep.controller import Controller, Pace, RunSummary, Stop
from dllm_sweep.costs import Experience, Work
from dllm_sweep.progress import Quiet
from dllm_sweep.records import (
    Claim,
    Demand,
    Holder,
    PlannedTrial,
    PlannedUnit,
    TrialRow,
    UnitStanding,
    UnitTime,
)
from dllm_sweep.spec import Unit
from dllm_sweep.workers.virtual_pool import (
    NOWHERE,
    Failures,
    VirtualClock,
    VirtualPool,
    result_of,
)

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store

_NOBODY = Holder(host="simulation", pid=0, process_started_s=0.0)
Done = Mapping[str, frozenset[str]]
"""Keys of committed units by the keys of their trials."""
_FOREVER_S = math.inf
VIRTUAL_PACE = Pace(tick_s=_FOREVER_S, refresh_s=_FOREVER_S, refresh_share=1.0, renew_s=_FOREVER_S)
"""Nobody but the simulation changes anything: no event goes unheard."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is simulated, apart from the trials.

    Attributes:
        gpus: Machines with one GPU each.
        demand_of: The size of worker that a trial needs.
        history: What units took before: the costs are corrected by it.
        failures: How machines fail; None never.
        spread: Standard deviation of log(real / estimated seconds) of a task of a trial.
        seed: Seed of what is random about costs.
    """

    gpus: int
    demand_of: Callable[[TrialRow], Demand] = lambda _: Demand(gpus=1.0)
    history: tuple[UnitTime, ...] = ()
    failures: Failures | None = None
    spread: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What came of it.

    Attributes:
        makespan_s: Until the last unit was committed.
        baselines_s: Until the last baseline was complete.
        busy_s: Seconds that all GPUs worked, committed units only.
        bound_s: No order of work on so many GPUs could be over sooner, without failures.
        units: Committed units.
        redone: Units cut off by failures, which ran again.
        order: What was committed: when, the trial's key, the unit's key.
    """

    makespan_s: float
    baselines_s: float
    busy_s: float
    bound_s: float
    units: int
    redone: int
    order: tuple[tuple[float, str, str], ...]


def simulate(trials: Sequence[PlannedTrial], world: World, done: Done | None = None) -> Simulation:
    """Run trials to their end on a virtual clock.

    Args:
        trials: What to run; those that are skipped are left out.
        world: On what.
        done: What is committed already.

    Raises:
        RuntimeError: If a trial needs more than there is.
    """
    from dllm_sweep.db.memory import MemoryStore

    clock = VirtualClock()
    board, done = MemoryStore(clock=clock), done or {}
    runnable = [trial for trial in trials if trial.skip_reason is None]
    board.plan_sweep("simulation", "", runnable, reuse=False)
    _commit(board, runnable, done)
    seconds = _Costs(runnable, world)
    pool = VirtualPool(
        store=board, clock=clock, machines=world.gpus, seconds=seconds, failures=world.failures
    )
    summary = _run(board, pool, clock, world)
    if summary.pending or summary.failed:
        raise RuntimeError(f"{summary.pending + summary.failed} trials did not run to their end")
    baselines = {trial.spec.key for trial in runnable if trial.spec.is_baseline}
    return Simulation(
        makespan_s=max((at_s for at_s, _, _ in pool.committed), default=0.0),
        baselines_s=max((at for at, key, _ in pool.committed if key in baselines), default=0.0),
        busy_s=pool.busy_s,
        bound_s=bound_s(runnable, world.gpus, seconds.of, done),
        units=len(pool.committed),
        redone=pool.deaths,
        order=tuple(pool.committed),
    )


def forecast(
    trials: Sequence[PlannedTrial], world: World, runs: int, done: Done | None = None
) -> tuple[Simulation, ...]:
    """Simulate with costs and failures drawn anew each time."""
    return tuple(
        simulate(
            trials,
            replace(
                world,
                seed=world.seed + run,
                failures=world.failures and replace(world.failures, seed=world.seed + run),
            ),
            done,
        )
        for run in range(runs)
    )


def as_stored(trial: PlannedTrial, standings: Sequence[UnitStanding]) -> PlannedTrial:
    """A trial with the units that the store has of it, which may be cut otherwise."""
    if not standings:
        return trial
    units = tuple(
        PlannedUnit(unit=standing.unit, estimated_s=standing.estimated_s) for standing in standings
    )
    estimated_s = load_of(trial) + sum(unit.estimated_s for unit in units)
    return replace(trial, units=units, estimated_s=estimated_s)


def _commit(store: Store, trials: Sequence[PlannedTrial], done: Done) -> None:
    """Bring a store to where a sweep stands: the units in `done` are committed."""
    if not done:
        return
    keys = {trial.spec.key for trial in trials}
    lease = store.take_lease("simulation", _NOBODY, seconds=1e9)
    for row in store.trials(lease.sweep_id):
        if row.key not in keys or not done.get(row.key):
            continue
        claim = store.claim(lease, row.id, "done", NOWHERE)
        if claim is not None:
            for unit in claim.units:
                if unit.key in done[row.key]:
                    store.commit_unit(claim, result_of(claim, unit, 0.0))
    store.release_lease(lease)


def _run(store: Store, pool: VirtualPool, clock: VirtualClock, world: World) -> RunSummary:
    lease = store.take_lease("simulation", _NOBODY, seconds=1e9, takeover=True)
    controller = Controller(
        store=store,
        pool=pool,
        lease=lease,
        display=Quiet(),
        stop=Stop(),
        demand_of=world.demand_of,
        history=world.history,
        clock=clock,
        pace=VIRTUAL_PACE,
    )
    return controller.run()


def bound_s(
    trials: Iterable[PlannedTrial],
    gpus: int,
    seconds: Callable[[PlannedTrial, Unit], float],
    done: Done | None = None,
) -> float:
    """A time below which no order of work can be over.

    It is the larger of two. All work shared out evenly: every unit once, and the weights of every
    trial loaded once. And the longest chain of work that must be one after the other: loading,
    quantizing, and the longest unit of a trial.

    Args:
        trials: The trials.
        gpus: How many GPUs there are, one to a worker.
        seconds: How long a unit of a trial takes with the weights at hand.
        done: What is committed already.
    """
    work_s, chain_s = 0.0, 0.0
    for trial in trials:
        over = (done or {}).get(trial.spec.key, frozenset())
        costs = [(unit, seconds(trial, unit)) for unit in _units(trial) if unit.key not in over]
        load_s = load_of(trial)
        first_s = sum(cost_s for unit, cost_s in costs if unit.kind == "quantize")
        rest = [cost_s for unit, cost_s in costs if unit.kind != "quantize"]
        work_s += load_s + first_s + sum(rest)
        chain_s = max(chain_s, load_s + first_s + max(rest, default=0.0))
    return max(work_s / gpus, chain_s)


def load_of(trial: PlannedTrial) -> float:
    """Estimated seconds until a worker has a trial's weights: what its units leave of its cost."""
    return max(trial.estimated_s - sum(unit.estimated_s for unit in trial.units), 0.0)


def _units(trial: PlannedTrial) -> tuple[Unit, ...]:
    return tuple(planned.unit for planned in trial.units) or trial.spec.units()


class _Costs:
    """The time that units really take: as estimated, as learnt, and by chance."""

    def __init__(self, trials: Sequence[PlannedTrial], world: World) -> None:
        self._trials: Mapping[str, PlannedTrial] = {trial.spec.key: trial for trial in trials}
        self._estimates = {
            (trial.spec.key, planned.unit.key): planned.estimated_s
            for trial in trials
            for planned in trial.units
        }
        self._experience = Experience(world.history)
        self._spread, self._seed = world.spread, world.seed

    def __call__(self, claim: Claim, unit: Unit, resident: bool) -> float:
        """Seconds of a unit on a worker, with loading the weights if it does not hold them."""
        trial = self._trials[claim.trial_key]
        return self.of(trial, unit) + (0.0 if resident else load_of(trial))

    def of(self, trial: PlannedTrial, unit: Unit) -> float:
        """Seconds of a unit with the weights at hand."""
        spec, name = trial.spec, unit.task or unit.kind
        estimated_s = self._estimates[spec.key, unit.key]
        if self._experience.learnt:
            work = Work(
                model=str(spec.model), method=spec.method, scheme=str(spec.scheme), work=name
            )
            estimated_s *= self._experience.factor(work)
        if self._spread:
            # A task is off as a whole: its shards are off alike.
            chance = random.Random(f"{self._seed}:{spec.key}:{name}")
            estimated_s *= math.exp(chance.gauss(0.0, self._spread))
        return estimated_s
