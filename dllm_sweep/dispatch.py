"""Who does what now: workers that come and go, and the units that are on them."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep import policy
from dllm_sweep.board import Board
from dllm_sweep.faults import Breakers
from dllm_sweep.pieces import Job, Seat, Todo
from dllm_sweep.progress import Display, Subject
from dllm_sweep.records import Claim, Demand, HostInfo, Lease

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store
    from dllm_sweep.mirror import Mirror
    from dllm_sweep.workers.pool import Pool

_BUDGET_FACTOR = 4.0
_SHORTEST_BUDGET_S = 30 * 60.0


@dataclass(frozen=True, kw_only=True)
class Flight:
    """A unit on a worker."""

    worker: int
    job: Job
    todo: Todo
    claim: Claim
    started_s: float
    load_s: float
    """Estimated seconds of it that go into loading weights."""
    budget_s: float
    """Seconds after which the unit is taken to hang."""

    @property
    def subject(self) -> Subject:
        """Its trial, for displays."""
        return Subject.of(self.claim)


class Dispatcher:
    """Seats workers as they come up, and hands units to those that are idle.

    Args:
        store: Where trials are claimed.
        pool: The workers.
        lease: The right to claim.
        display: Told of workers and of units that begin.
        board: The picture.
        mirror: What brings the picture up to date.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        lease: Lease,
        display: Display,
        board: Board,
        mirror: Mirror,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._pool, self._lease, self._display = store, pool, lease, display
        self._board, self._mirror, self._clock = board, mirror, clock
        self._seats: dict[int, Seat] = {}
        self.hosts: dict[int, HostInfo] = {}
        self.flights: dict[int, Flight] = {}
        self.breakers = Breakers(board, display)

    @property
    def workers(self) -> int:
        """How many workers are up."""
        return len(self._seats)

    def overdue_s(self) -> float:
        """When the next unit will have used up its time; infinite if none is in flight."""
        ends = (flight.started_s + flight.budget_s for flight in self.flights.values())
        return min(ends, default=float("inf"))

    def want(self) -> int:
        """Tell the pool how many workers there is work for; returns how many it can carry."""
        # A worker in quarantine stays: its GPU would be given to another one.
        barred = self.breakers.barred(self.hosts, self._seats)
        idle = [self._seats[worker] for worker in barred if worker not in self.flights]
        wanted = policy.wanted(self._board, idle)
        return self._pool.want(wanted)

    def seat(self) -> bool:
        """Take note of workers that came up or were let go; returns whether any came up."""
        workers = {worker.id: worker for worker in self._pool.workers()}
        gone = [n for n in self._seats if n not in workers and n not in self.flights]
        for number in gone:
            self.unseat(number, "let go")
        new = {number: worker for number, worker in workers.items() if number not in self._seats}
        for number, worker in new.items():
            self._seats[number] = Seat(worker=number, demand=worker.demand)
            self.hosts[number] = worker.host
            self._display.worker_joined(number, worker.host)
        return bool(new)

    def unseat(self, worker: int, why: str) -> None:
        """Take note that a worker is gone."""
        if self._seats.pop(worker, None) is not None:
            self._display.worker_left(worker, why)

    def fill(self) -> bool:
        """Give idle workers their next unit; False if a trial could not be claimed."""
        unusable, all_claimed = self._unusable(), True
        idle = [seat for number, seat in self._seats.items() if number not in unusable]
        # Who holds the weights of a trial that goes on comes before those who would load them.
        idle.sort(key=lambda seat: seat.job not in self._board.jobs)
        dry: set[Demand] = set()
        for seat in idle:
            # What is of no use to one idle worker is of no use to the next of its size.
            if seat.demand in dry and seat.job is None:
                continue
            while choice := policy.choose(self._board, seat, self._clock()):
                if self._begin(seat, choice.job, choice.todo):
                    break
                all_claimed = False
            else:
                dry.add(seat.demand)
        return all_claimed

    def claim_again(self, job: Job, worker: int) -> bool:
        """Read again what is left of a trial; False if it is not ours any more."""
        return self._claim(job, self.hosts[worker])

    def end(self, worker: int, why: str) -> None:
        """End a worker's process; whatever it was doing is dropped."""
        flight = self.flights.pop(worker, None)
        if flight is not None and worker in flight.job.flights:
            self._board.land(flight.job, worker, done=False)
        if worker in self._seats:
            self._pool.end(worker)
            self.unseat(worker, why)

    def drop(self, job: Job) -> None:
        """Forget a trial that is over, and end the processes that are still at it."""
        for worker in list(job.flights):
            self.end(worker, "its trial is over")
        self._board.remove(job)

    def _unusable(self) -> set[int]:
        return self.breakers.barred(self.hosts, self._seats) | self.flights.keys()

    def _begin(self, seat: Seat, job: Job, todo: Todo) -> bool:
        """Submit a unit, with a claim of its trial; False if the trial cannot be claimed."""
        if job.claim is None or job.stale:
            if not self._claim(job, self.hosts[seat.worker]):
                return False
            todo = policy.next_todo(job, self._board)
        claim = job.claim
        if claim is None:
            return False
        load_s = 0.0 if seat.job == job.id else job.load_s
        cost_s = todo.cost_s + load_s
        flight = Flight(
            worker=seat.worker,
            job=job,
            todo=todo,
            claim=claim,
            started_s=self._clock(),
            load_s=load_s,
            budget_s=max(_BUDGET_FACTOR * cost_s, _SHORTEST_BUDGET_S),
        )
        self.flights[seat.worker] = flight
        self._board.fly(job, todo, seat.worker, flight.started_s + cost_s)
        seat.model, seat.job = job.model, job.id
        self._display.unit_started(seat.worker, flight.subject, todo.unit)
        self._pool.submit(seat.worker, claim, todo.unit)
        return True

    def _claim(self, job: Job, host: HostInfo) -> bool:
        """Claim a trial, or read again what is left of one that is claimed."""
        old = job.claim
        claim_id = old.claim_id if old else uuid.uuid4().hex
        claim = self._store.claim(self._lease, job.id, claim_id, host)
        if claim is None:
            # Cancelled meanwhile, or the sweep is paused: the next look at the store tells.
            for worker in list(job.flights):
                self.end(worker, "its trial is not ours any more")
            job.ready_at_s = float("inf")
            self._board.put(job)
            return False
        units = claim.units or claim.trial.units()
        left = [(at, unit) for at, unit in enumerate(units) if unit.key not in claim.done]
        todos = [self._mirror.todo(job, at, unit) for at, unit in left]
        if old is None:
            self._board.open(job, claim, todos)
        else:
            self._board.renew(job, claim, todos)
        return bool(job.todo)
