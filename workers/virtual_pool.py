"""A pool on a virtual clock: nothing is computed, a unit takes what a model of costs says.

The controller that runs on it is the real one, so what it does here is what it does on machines.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
NOWHERE = HostInfo(host="nowhere", pid=0, device="virtual")
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

    def lifetimes(self, machine: int) -> Callable[[], float]:
        """Draws how long a machine lives, again and again."""
        chance = random.Random(f"{self.seed}:{machine}")
        return lambda: chance.expovariate(1 / self.mtbf_s)


@dataclass(kw_only=True, eq=False)
class _Machine:
    """A machine with one GPU."""

    number: int
    free: float = 1.0
    up: bool = True


@dataclass(kw_only=True, eq=False)
class _Seat:
    """A worker, the machines that it is on, and what it does."""

    worker: Worker
    machines: list[_Machine]
    share: float
    holds: str | None = None
    flight: tuple[int, Claim, Unit, float] | None = None
    """Serial number, claim, unit and seconds of what it does."""


@dataclass(order=True, frozen=True)
class _Event:
    at_s: float
    serial: int
    what: str = field(compare=False)
    number: int = field(compare=False)
    """The worker of a unit that is done, the machine of everything else."""


class VirtualPool:
    """Machines with one GPU each, on a virtual clock.

    Args:
        store: Where results are committed.
        clock: Moved on by `wait`.
        machines: How many there are. A worker without GPUs has one for itself, too.
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
        self._seats: dict[int, _Seat] = {}
        self._ids, self._serials = itertools.count(1), itertools.count(1)
        self._events: list[_Event] = []
        self._wanted: dict[Demand, int] = {}
        self._news = False
        self._lives = [failures.lifetimes(n) for n in range(machines)] if failures else []
        for number, life in enumerate(self._lives):
            self._at(life(), "fail", number)
        self.busy_s = 0.0
        """Seconds that units took, times the machines that they took, all together."""
        self.committed: list[tuple[float, str, str]] = []
        """What was committed: when, the trial's key, the unit's key."""
        self.deaths = 0
        """Units cut off by a machine that failed."""

    def want(self, counts: Mapping[Demand, int]) -> int:
        """Start workers on free machines as far as there are any; let idle ones go."""
        if counts != self._wanted:
            self._wanted = dict(counts)
            self._fit()
        return sum(counts.values())

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are up."""
        return tuple(seat.worker for seat in self._seats.values())

    def submit(self, worker: int, claim: Claim, unit: Unit) -> None:
        """Begin a unit; it ends when the clock has moved far enough."""
        seat = self._seats[worker]
        seconds = self._seconds(claim, unit, seat.holds == claim.trial_key)
        serial = self._at(self._clock.now_s + seconds, "done", worker)
        seat.flight, seat.holds = (serial, claim, unit, seconds), claim.trial_key

    def wait(self, timeout_s: float) -> list[Finished]:
        """Move the clock to the next event, at most by `timeout_s`; not at all if a worker came up.

        Raises:
            RuntimeError: If nothing will ever happen.
        """
        if self._news:
            self._news = False
            return []
        limit_s = self._clock.now_s + timeout_s
        while self._events and self._events[0].at_s <= limit_s:
            event = heapq.heappop(self._events)
            self._clock.now_s = event.at_s
            ended = self._happen(event)
            if ended is not None:
                return ended
        if math.isinf(limit_s):
            raise RuntimeError("no unit is in flight and no machine comes back")
        self._clock.now_s = limit_s
        return []

    def end(self, worker: int) -> None:
        """End a worker; another one starts if it is wanted."""
        self._remove(self._seats[worker])
        self._fit()

    def log_path(self, worker: int) -> Path:
        """Nothing is printed anywhere."""
        return Path("nowhere")

    def close(self) -> None:
        """End all workers."""
        for seat in list(self._seats.values()):
            self._remove(seat)

    def _happen(self, event: _Event) -> list[Finished] | None:
        """What an event brings; None if nobody needs to hear of it."""
        if event.what == "done":
            seat = self._seats.get(event.number)
            if seat is None or seat.flight is None or seat.flight[0] != event.serial:
                return None
            return [self._finish(seat)]
        machine = self._machines[event.number]
        if event.what == "fail":
            return self._fail(machine)
        machine.up = True
        self._at(self._clock.now_s + self._lives[machine.number](), "fail", machine.number)
        self._fit()
        return []

    def _finish(self, seat: _Seat) -> Finished:
        assert seat.flight is not None
        _, claim, unit, seconds = seat.flight
        seat.flight = None
        self.busy_s += seconds * seat.share
        number = seat.worker.id
        try:
            state = self._store.commit_unit(claim, result_of(claim, unit, seconds))
        except Fenced:
            return Finished(worker=number, result=Outcome(unit=unit))
        self.committed.append((self._clock.now_s, claim.trial_key, unit.key))
        return Finished(worker=number, result=Outcome(unit=unit, wall_s=seconds, state=state))

    def _fail(self, machine: _Machine) -> list[Finished]:
        assert self._failures is not None
        machine.up = False
        self._at(self._clock.now_s + self._failures.away_s, "back", machine.number)
        ended = []
        for seat in [seat for seat in self._seats.values() if machine in seat.machines]:
            self._remove(seat)
            if seat.flight is not None:
                self.deaths += 1
                what = "the machine failed"
                death = Death(reason=EndReason.LOST, message=what, machine_lost=True)
                ended.append(Finished(worker=seat.worker.id, result=death))
        self._fit()
        return ended

    def _fit(self) -> None:
        """Let workers go that are not wanted, and start those that are, as far as they fit."""
        missing = dict(self._wanted)
        for seat in sorted(self._seats.values(), key=lambda seat: seat.flight is None):
            demand = seat.worker.demand
            if seat.flight is None and missing.get(demand, 0) <= 0:
                self._remove(seat)
            else:
                missing[demand] = missing.get(demand, 0) - 1
        for demand, number in missing.items():
            while number > 0 and self._start(demand):
                number -= 1

    def _start(self, demand: Demand) -> bool:
        share = demand.gpus or 1.0
        each = min(share, 1.0)
        fits = [machine for machine in self._machines if machine.up and machine.free >= each]
        count = math.ceil(share)
        if len(fits) < count:
            return False
        # A machine that is shared already is filled up first.
        chosen = sorted(fits, key=lambda machine: (machine.free, machine.number))[:count]
        for machine in chosen:
            machine.free -= each
        host = HostInfo(host=f"machine{chosen[0].number}", pid=0, device="virtual")
        worker = Worker(id=next(self._ids), demand=demand, host=host)
        self._seats[worker.id] = _Seat(worker=worker, machines=chosen, share=share)
        self._news = True
        return True

    def _remove(self, seat: _Seat) -> None:
        del self._seats[seat.worker.id]
        for machine in seat.machines:
            machine.free += min(seat.share, 1.0)

    def _at(self, at_s: float, what: str, number: int) -> int:
        serial = next(self._serials)
        heapq.heappush(self._events, _Event(at_s, serial, what, number))
        return serial


def result_of(claim: Claim, unit: Unit, seconds: float) -> UnitResult:
    """What a unit of a simulated sweep gives: the same for all."""
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
