"""A pool on a virtual clock: nothing is computed, a unit takes what a model of costs says.

The controller that runs on it is the real one, so what it does here is what it does on machines.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_sweep.errors import Fenced
from dllm_sweep.records import Artifact, Claim, Demand, EndReason, HostInfo, Metric, UnitResult
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally
from dllm_sweep.workers.messages import Death, Finished, Outcome, Worker

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store

Seconds = Callable[[Claim, Unit, bool], float]
"""How long a unit takes on a worker that holds the trial's weights, or does not."""
_SCORES = Tally.of((0.25, 0.75))


class VirtualClock:
    """Seconds that pass only when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Now, in seconds since the beginning."""
        return self.now_s


@dataclass(frozen=True, kw_only=True)
class Failures:
    """How machines fail: each on its own, at random, and comes back.

    Attributes:
        mtbf_s: Mean time from coming up to failing.
        away_s: How long a failed machine is away.
        seed: Seed of the times; equal for equal machines, whatever they do.
    """

    mtbf_s: float
    away_s: float = 600.0
    seed: int = 0


@dataclass(kw_only=True)
class _Machine:
    """A place for one worker."""

    number: int
    worker: Worker | None = None
    holds: str | None = None
    flight: tuple[int, Claim, Unit, float] | None = None
    """Serial number, claim, unit and seconds of what it does."""


class VirtualPool:
    """Machines for one worker each, on a virtual clock.

    Args:
        store: Where results are committed.
        clock: Moved on by `wait`.
        machines: How many there are.
        seconds: How long units take.
        failures: How machines fail; None never.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: VirtualClock,
        machines: int,
        seconds: Seconds,
        failures: Failures | None = None,
    ) -> None:
        self._store, self._clock, self._seconds = store, clock, seconds
        self._failures = failures
        self._machines = [_Machine(number=number) for number in range(machines)]
        self._away: set[int] = set()
        self._of: dict[int, _Machine] = {}
        self._ids = itertools.count(1)
        self._serials = itertools.count(1)
        self._events: list[tuple[float, int, str, int]] = []
        self._wanted: dict[Demand, int] = {}
        self.busy_s = 0.0
        """Seconds in which machines worked, all together."""
        self.units: list[tuple[float, str, str]] = []
        """What was committed: when, the trial's key, the unit's key."""
        for machine in self._machines:
            self._plan_failure(machine, 0.0)

    def want(self, counts: Mapping[Demand, int]) -> None:
        """Start workers on free machines as far as there are any; let idle ones go."""
        if counts == self._wanted:
            return
        self._wanted = dict(counts)
        self._fit()

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are up."""
        return tuple(machine.worker for machine in self._machines if machine.worker)

    def submit(self, worker: int, claim: Claim, unit: Unit) -> None:
        """Begin a unit; it ends when the clock has moved far enough."""
        machine = self._of[worker]
        resident = machine.holds == claim.trial_key
        seconds = self._seconds(claim, unit, resident)
        serial = next(self._serials)
        machine.flight, machine.holds = (serial, claim, unit, seconds), claim.trial_key
        self._at(self._clock.now_s + seconds, "done", serial, machine)

    def wait(self, timeout_s: float) -> list[Finished]:
        """Move the clock to the next event, at most by `timeout_s`."""
        limit_s = self._clock.now_s + timeout_s
        while self._events and self._events[0][0] <= limit_s:
            at_s, serial, what, number = heapq.heappop(self._events)
            self._clock.now_s = max(at_s, self._clock.now_s)
            machine = self._machines[number]
            if what == "done" and machine.flight and machine.flight[0] == serial:
                return [self._finish(machine)]
            if what == "fail":
                ended = self._fail(machine)
                if ended:
                    return ended
            if what == "back":
                self._away.discard(number)
                self._plan_failure(machine, self._clock.now_s)
                self._fit()
                return []
        if limit_s == float("inf"):
            raise RuntimeError("nothing will ever happen: the controller waits for no event")
        self._clock.now_s = limit_s
        return []

    def end(self, worker: int) -> None:
        """End a worker; another one starts if it is wanted."""
        self._empty(self._of[worker])
        self._fit()

    def log_path(self, claim: Claim) -> Path:
        """Nothing is printed anywhere."""
        return Path("nowhere")

    def close(self) -> None:
        """End all workers."""
        self.want({})

    def _fit(self) -> None:
        wanted = dict(self._wanted)
        for machine in self._machines:
            worker = machine.worker
            if worker is not None and machine.flight is not None:
                wanted[worker.demand] = wanted.get(worker.demand, 0) - 1
        for machine in [m for m in self._machines if m.worker and m.flight is None]:
            worker = machine.worker
            if worker is not None and wanted.get(worker.demand, 0) > 0:
                wanted[worker.demand] -= 1
            else:
                self._empty(machine)
        free = [m for m in self._machines if m.worker is None and m.number not in self._away]
        needs = [demand for demand, number in wanted.items() for _ in range(number)]
        for machine, demand in zip(free, needs, strict=False):
            host = HostInfo(host=f"machine{machine.number}", pid=0, device="virtual")
            machine.worker = Worker(id=next(self._ids), demand=demand, host=host)
            self._of[machine.worker.id] = machine

    def _empty(self, machine: _Machine) -> None:
        if machine.worker is not None:
            del self._of[machine.worker.id]
        machine.worker = machine.flight = machine.holds = None

    def _finish(self, machine: _Machine) -> Finished:
        assert machine.flight is not None
        assert machine.worker is not None
        _, claim, unit, seconds = machine.flight
        machine.flight = None
        self.busy_s += seconds
        worker = machine.worker.id
        try:
            state = self._store.commit_unit(claim, _result(claim, unit, seconds))
        except Fenced:
            return Finished(worker=worker, result=Outcome(unit=unit))
        self.units.append((self._clock.now_s, claim.trial_key, unit.key))
        return Finished(worker=worker, result=Outcome(unit=unit, wall_s=seconds, state=state))

    def _fail(self, machine: _Machine) -> list[Finished]:
        if self._failures is None:
            return []
        self._away.add(machine.number)
        self._at(self._clock.now_s + self._failures.away_s, "back", 0, machine)
        worker, flight = machine.worker, machine.flight
        self._empty(machine)
        if worker is None or flight is None:
            return []
        death = Death(reason=EndReason.LOST, message="the machine failed", machine_lost=True)
        return [Finished(worker=worker.id, result=death)]

    def _plan_failure(self, machine: _Machine, now_s: float) -> None:
        if self._failures is None:
            return
        chance = random.Random(f"{self._failures.seed}:{machine.number}:{now_s:.3f}")
        self._at(now_s + chance.expovariate(1 / self._failures.mtbf_s), "fail", 0, machine)

    def _at(self, at_s: float, what: str, serial: int, machine: _Machine) -> None:
        heapq.heappush(self._events, (at_s, serial, what, machine.number))


def _result(claim: Claim, unit: Unit, seconds: float) -> UnitResult:
    metrics: tuple[Metric, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    if unit.kind == "evaluate":
        value, stderr = _SCORES.mean, _SCORES.stderr
        score = Metric(
            task=unit.task, name="acc", value=value, stderr=stderr, n=_SCORES.n, tally=_SCORES
        )
        metrics = (score,)
    if unit.kind == "quantize":
        digest = claim.trial_key
        artifacts = (Artifact(kind="weights", path=f"w/{digest}", sha256=digest, bytes=1),)
    return UnitResult(
        unit=unit, wall_s=seconds, metrics=metrics, artifacts=artifacts, device="virtual"
    )
