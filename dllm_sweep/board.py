"""The controller's picture of a sweep: what is left of each trial, and who is at what.

It is refreshed from the store now and then and otherwise follows what the controller itself does,
so that choosing the next unit costs a few comparisons however many trials wait.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

from dllm_sweep.pieces import QUANTIZE, Job, Pair, Place, Todo
from dllm_sweep.records import Claim, Demand


class Lane:
    """All jobs for workers of one size."""

    def __init__(self) -> None:
        self.urgent: dict[int, Job] = {}
        self.open: dict[int, Job] = {}
        self.waiting: dict[Pair, dict[int, Job]] = {}
        self._longest: dict[Pair, list[tuple[float, int]]] = {}
        self._probes: dict[Pair, list[tuple[float, float, int]]] = {}

    def push(self, job: Job) -> None:
        """Let a job wait."""
        if job.urgent:
            self.urgent[job.id] = job
            return
        self.waiting.setdefault(job.pair, {})[job.id] = job
        cost_s = job.todo_s
        heapq.heappush(self._longest.setdefault(job.pair, []), (-cost_s, job.id))
        heapq.heappush(self._probes.setdefault(job.pair, []), (job.probe_s, -cost_s, job.id))

    def drop(self, job: Job) -> None:
        """Forget a job, wherever it is."""
        self.urgent.pop(job.id, None)
        self.open.pop(job.id, None)
        self.waiting.get(job.pair, {}).pop(job.id, None)

    def longest(self, pair: Pair) -> tuple[float, Job] | None:
        """The longest waiting job of a pair with its seconds."""
        heap, jobs = self._longest[pair], self.waiting[pair]
        # Jobs that have left are still in the heap: they go when they come to its top.
        while heap and heap[0][1] not in jobs:
            heapq.heappop(heap)
        return (-heap[0][0], jobs[heap[0][1]]) if heap else None

    def cheapest_probe(self, pair: Pair) -> tuple[float, Job] | None:
        """The job of a pair that shows soonest whether its method works, with its seconds."""
        heap, jobs = self._probes[pair], self.waiting[pair]
        while heap and heap[0][2] not in jobs:
            heapq.heappop(heap)
        return (heap[0][0], jobs[heap[0][2]]) if heap else None

    def waiting_jobs(self) -> int:
        """How many jobs could be claimed now."""
        return len(self.urgent) + sum(len(jobs) for jobs in self.waiting.values())


class Board:
    """All jobs that are not over, by size of worker and by what may happen to them."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.lanes: dict[Demand, Lane] = {}
        self.paused = False
        self.probed: set[Pair] = set()
        """Pairs of which some job has got past its first measurement, or has failed."""
        self.probing: dict[Pair, int] = {}
        """Pairs whose probe is on its way, with the job."""
        self.held: frozenset[Pair] = frozenset()
        self.early: frozenset[str] = frozenset()
        """Tasks that are measured before all others."""
        self._later: list[tuple[float, int]] = []

    def put(self, job: Job) -> None:
        """Let a job wait until it is claimed, at the latest place that its facts allow."""
        self.jobs[job.id] = job
        lane = self._leave(job)
        job.claim = None
        job.flights.clear()
        if job.pair in self.held:
            job.place = Place.HELD
        elif job.ready_at_s > 0:
            job.place = Place.LATER
            heapq.heappush(self._later, (job.ready_at_s, job.id))
        else:
            job.place = Place.WAITING
            lane.push(job)

    def wake(self, now_s: float) -> None:
        """Let jobs wait whose pause is over."""
        while self._later and self._later[0][0] <= now_s:
            job = self.jobs.get(heapq.heappop(self._later)[1])
            if job is not None and job.place is Place.LATER and job.ready_at_s <= now_s:
                job.ready_at_s = 0.0
                self.put(job)

    def next_wake_s(self) -> float:
        """When the next pause is over; infinite if none is."""
        return self._later[0][0] if self._later else float("inf")

    def open(self, job: Job, claim: Claim, left: Sequence[Todo]) -> None:
        """Note that a job was claimed; `left` is what is to do by the claim."""
        self._leave(job).open[job.id] = job
        job.place, job.claim = Place.OPEN, claim
        self.renew(job, claim, left)

    def renew(self, job: Job, claim: Claim, left: Sequence[Todo]) -> None:
        """Note what is left of a claimed job by a newer answer of the store."""
        busy = {todo.unit.key for todo, _ in job.flights.values()}
        job.claim, job.stale = claim, False
        job.set_todo(todo for todo in left if todo.unit.key not in busy)
        job.quantized = QUANTIZE not in job.todo and QUANTIZE not in busy
        if job.pair not in self.probed and not job.baseline:
            self.probing.setdefault(job.pair, job.id)

    def fly(self, job: Job, todo: Todo, worker: int, due_s: float) -> None:
        """Note that a worker begins a unit."""
        job.take_todo(todo)
        job.flights[worker] = (todo, due_s)

    def land(self, job: Job, worker: int, *, done: bool) -> None:
        """Note that a unit is done, or that it must run again."""
        todo, _ = job.flights.pop(worker)
        if not done:
            job.add_todo(todo)
        elif todo.unit.key == QUANTIZE:
            job.quantized = job.stale = True
        else:
            self._probe_ended(job)

    def remove(self, job: Job) -> None:
        """Forget a job that is over."""
        self._leave(job)
        self._probe_ended(job)
        self.jobs.pop(job.id, None)
        job.place = Place.GONE
        job.flights.clear()

    def hold(self, pairs: frozenset[Pair]) -> None:
        """Hold back the jobs of these pairs that have not begun."""
        self.held = pairs
        for job in [job for job in self.jobs.values() if job.pair in pairs]:
            if job.place in (Place.WAITING, Place.LATER):
                self._leave(job)
                job.place = Place.HELD

    def left(self) -> bool:
        """Whether anything may still run without the user's doing."""
        return any(job.place is not Place.HELD for job in self.jobs.values())

    def left_s(self, now_s: float) -> float:
        """Estimated seconds of work in all units that are not done."""
        due_s = (due_s for job in self.jobs.values() for _, due_s in job.flights.values())
        flying_s = sum(max(0.0, due - now_s) for due in due_s)
        return flying_s + sum(job.todo_s for job in self.jobs.values())

    def reprice(self, price: Callable[[Job, Todo], Todo]) -> None:
        """Give all units that are to do a new estimate and sort the waiting jobs by it."""
        for lane in self.lanes.values():
            lane.waiting.clear()
            lane._longest.clear()
            lane._probes.clear()
        for job in self.jobs.values():
            job.set_todo([price(job, todo) for todo in job.todo.values()])
            if job.place is Place.WAITING and not job.urgent:
                self.lanes[job.demand].push(job)

    def _leave(self, job: Job) -> Lane:
        lane = self.lanes.setdefault(job.demand, Lane())
        lane.drop(job)
        if self.probing.get(job.pair) == job.id:
            del self.probing[job.pair]
        return lane

    def _probe_ended(self, job: Job) -> None:
        self.probed.add(job.pair)
        self.probing.pop(job.pair, None)
