"""What is left of a sweep, simulated on machines that nobody has rented yet."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dllm_sweep.costs import Experience
from dllm_sweep.demands import resources_of
from dllm_sweep.plan import Plan
from dllm_sweep.records import Demand, PlannedTrial, TrialRow, UnitStanding
from dllm_sweep.simulate import Simulation, World, as_stored, forecast
from dllm_sweep.standings import Standing
from dllm_sweep.stored import stored_times, stored_trials, stored_units
from dllm_sweep.workers.virtual_pool import Failures

LAUNCHED = ("new", "pending", "running")
"""How trials stand that `launch` runs."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is simulated.

    Attributes:
        gpus: How many GPUs there are.
        price: For a GPU and an hour, in any currency; None if nobody asked.
        mtbf_h: Hours until a machine fails, on average; None never.
        runs: How often to simulate; more than once with costs that are off as usual.
    """

    gpus: int
    price: float | None = None
    mtbf_h: float | None = None
    runs: int = 1


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """The trials that would run, and what came of each simulation."""

    trials: tuple[PlannedTrial, ...]
    runs: tuple[Simulation, ...]


def outlook(plan: Plan, found: Sequence[Standing], store: str | None, offer: Offer) -> Outlook:
    """Simulate what launching a plan would run.

    Args:
        plan: The plan.
        found: How its trials stand in the store.
        store: The store's address as written.
        offer: On what.

    Raises:
        StoreError: If there is a store and it cannot be read.
    """
    left = _left(store, plan.name)
    waiting = [standing.trial for standing in found if standing.status in LAUNCHED]
    trials = tuple(as_stored(trial, left.get(trial.spec.key, ())) for trial in waiting)
    done = {
        key: frozenset(standing.unit.key for standing in units if standing.done)
        for key, units in left.items()
    }
    history = stored_times(store)
    world = World(
        gpus=offer.gpus,
        demand_of=_demands(plan),
        history=history,
        failures=None if offer.mtbf_h is None else Failures(mtbf_s=3600 * offer.mtbf_h),
        spread=Experience(history).spread if offer.runs > 1 else 0.0,
    )
    return Outlook(trials=trials, runs=forecast(trials, world, offer.runs, done))


def _left(store: str | None, sweep: str) -> dict[str, list[UnitStanding]]:
    """The units of unfinished trials, by the trial's key."""
    keys = {row.id: row.key for row in stored_trials(store, sweep)}
    units: dict[str, list[UnitStanding]] = defaultdict(list)
    for standing in stored_units(store, sweep):
        units[keys[standing.trial_id]].append(standing)
    return units


def _demands(plan: Plan) -> Callable[[TrialRow], Demand]:
    asked = resources_of(plan.source)

    def demand_of(row: TrialRow) -> Demand:
        gpus = asked.of(row.model).gpus
        return Demand(gpus=1.0 if gpus is None else gpus)

    return demand_of
