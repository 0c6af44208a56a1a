"""The loop that runs a sweep: claim, dispatch, watch, requeue. It never carries results."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep.board import Board
from dllm_sweep.costs import Experience
from dllm_sweep.dispatch import Dispatcher
from dllm_sweep.errors import DiskFull
from dllm_sweep.landing import Lander
from dllm_sweep.mirror import Mirror
from dllm_sweep.progress import Display, Subject
from dllm_sweep.racing import Race, verdicts
from dllm_sweep.records import Demand, Lease, TrialRow, TrialState, UnitTime

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store
    from dllm_sweep.workers.pool import Pool

LEASE_S = 60.0
"""Seconds without a renewal after which another controller may take a sweep over."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How often the loop does what no event asks for, in seconds.

    Attributes:
        tick_s: Longest wait for an event: signals are heeded after it.
        refresh_s: Shortest time between two readings of the store.
        refresh_share: Share of the time that reading the store may take.
        renew_s: Between two renewals of the lease.
    """

    tick_s: float = 1.0
    refresh_s: float = 5.0
    refresh_share: float = 0.02
    renew_s: float = LEASE_S / 6


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run of a sweep ended: trials by state, and whether the user interrupted it."""

    succeeded: int
    failed: int
    cancelled: int
    pending: int
    interrupted: bool
    wall_s: float
    pruned: int = 0


@dataclass
class Stop:
    """What the user asked for; signal handlers set it, the loop reads it."""

    drain: bool = False
    """Finish the units in flight, then stop."""
    now: bool = False
    """Give the trials back and stop."""


class Controller:
    """Runs what is pending of one sweep on a pool of workers that come and go.

    Args:
        store: The truth; every decision is a transition there.
        pool: The workers.
        lease: The right to run the sweep.
        display: Told of everything that happens.
        stop: Set from outside to end early.
        demand_of: The size of worker that a trial needs.
        race: When to give up trials that have collapsed; None never does.
        history: What units took before, oldest first.
        most: Most workers that the pool can have, if it is known; for the display.
        clock: Seconds that never run backwards.
        pace: How often to look at the store and at the clock.
    """

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        lease: Lease,
        display: Display,
        stop: Stop,
        demand_of: Callable[[TrialRow], Demand] = lambda _: Demand(),
        race: Race | None = None,
        history: Iterable[UnitTime] = (),
        most: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        self._store, self._pool, self._lease = store, pool, lease
        self._display, self._stop, self._clock = display, stop, clock
        self._pace, self._race, self._most = pace or Pace(), race, most
        self._experience = Experience(history)
        self._board = Board()
        self._mirror = Mirror(store, lease.sweep_id, self._board, demand_of, self._experience)
        self._desk = Dispatcher(
            store=store,
            pool=pool,
            lease=lease,
            display=display,
            board=self._board,
            mirror=self._mirror,
            clock=clock,
        )
        self._lander = Lander(
            store=store,
            pool=pool,
            display=display,
            board=self._board,
            mirror=self._mirror,
            desk=self._desk,
            experience=self._experience,
            clock=clock,
        )
        self._priced = max(self._experience.learnt, 1)
        self._renewed_s = clock()
        self._next_refresh_s = clock()

    def run(self) -> RunSummary:
        """Run until nothing is left that may start, or the user stops it.

        Raises:
            Fenced: If another controller has taken the sweep over.
            StoreError: If the store cannot be reached.
            DiskFull: If results could not be written any more.
        """
        started_s = self._clock()
        self._refresh()
        wanted = self._desk.want()
        workers = wanted if self._most is None else min(wanted, self._most)
        trials = [row for row in self._mirror.trials if row.state is not TrialState.SKIPPED]
        units, done = sum(row.units for row in trials), sum(row.units_done for row in trials)
        self._display.start(units=units, done=done, workers=workers)
        try:
            while self._step():
                self._renew()
        finally:
            self._display.stop()
        if self._lander.senseless:
            raise DiskFull(self._lander.senseless)
        return self._summary(self._clock() - started_s)

    def _step(self) -> bool:
        """Do one round; False when there is nothing more to do."""
        if self._stop.now:
            return False
        self._board.wake(self._clock())
        if self._clock() >= self._next_refresh_s:
            self._refresh()
        self._hand_out()
        if not self._desk.flights and (self._stopping or not self._anything_left()):
            return False
        for finished in self._pool.wait(self._patience_s()):
            self._lander.land(finished)
        self._lander.end_overdue()
        if self._lander.look_soon:
            self._lander.look_soon = False
            self._look_soon()
        return True

    def _hand_out(self) -> None:
        """Give idle workers their next units, also those that come up at once for what is left."""
        came_up = True
        self._desk.seat()
        while came_up:
            if not self._stopping and not self._desk.fill():
                self._look_soon()
            self._desk.want()
            came_up = self._desk.seat()

    @property
    def _stopping(self) -> bool:
        return self._stop.drain or bool(self._lander.senseless)

    def _anything_left(self) -> bool:
        if not self._board.left():
            # The user may have added or retried trials since the last look.
            self._refresh()
        return self._board.left()

    def _patience_s(self) -> float:
        """How long to wait for an event: until the first thing that no event tells."""
        now_s = self._clock()
        due_s = min(
            self._next_refresh_s,
            self._renewed_s + self._pace.renew_s,
            self._board.next_wake_s(),
            self._desk.overdue_s(),
        )
        return min(max(due_s - now_s, 0.0), self._pace.tick_s)

    def _refresh(self) -> None:
        started_s, paused = self._clock(), self._board.paused
        for job, state in self._mirror.refresh(self._lease.sweep, started_s):
            self._desk.drop(job)
            self._display.trial_ended(Subject(job.key, job.label), state, None)
        took_s = self._clock() - started_s
        pause_s = max(self._pace.refresh_s, took_s / self._pace.refresh_share)
        self._next_refresh_s = self._clock() + pause_s
        if self._board.paused and not paused:
            self._display.note("paused: `dllm-sweep pause --off` goes on, Ctrl-C stops")
        if self._race is not None:
            self._run_race(self._race)
        if self._experience.learnt >= 2 * self._priced:
            self._priced = self._experience.learnt
            self._board.reprice(lambda job, todo: self._mirror.todo(job, todo.position, todo.unit))
        work_s = self._board.left_s(self._clock())
        left_s = work_s / self._desk.workers if self._desk.workers else None
        states = Counter(row.state for row in self._mirror.trials)
        self._display.standing(states, left_s)

    def _run_race(self, race: Race) -> None:
        # Once: with other tasks a trial would be looked at more often than the bounds allow for.
        self._board.early = self._board.early or race.cheapest(self._board.jobs.values())
        scores = self._store.scores(self._lease.sweep_id)
        for verdict in verdicts(self._mirror.trials, scores, self._board.early, race):
            job = self._board.jobs.get(verdict.trial_id)
            if job and self._store.prune(self._lease, verdict.trial_id, verdict.evidence):
                self._desk.drop(job)
                self._display.note(f"{job.label}: given up: {verdict.evidence}")
                self._display.trial_ended(Subject(job.key, job.label), TrialState.PRUNED, None)

    def _look_soon(self) -> None:
        soon_s = self._clock() + min(self._pace.tick_s, 1.0)
        self._next_refresh_s = min(self._next_refresh_s, soon_s)

    def _renew(self) -> None:
        if self._clock() - self._renewed_s >= self._pace.renew_s:
            self._store.renew_lease(self._lease, seconds=LEASE_S)
            self._renewed_s = self._clock()
            self._display.lease_renewed()

    def _summary(self, wall_s: float) -> RunSummary:
        states = Counter(row.state for row in self._store.trials(self._lease.sweep_id))
        return RunSummary(
            succeeded=states[TrialState.SUCCEEDED],
            failed=states[TrialState.FAILED],
            cancelled=states[TrialState.CANCELLED],
            pruned=states[TrialState.PRUNED],
            pending=states[TrialState.PENDING] + states[TrialState.RUNNING],
            interrupted=self._stop.drain or self._stop.now,
            wall_s=wall_s,
        )
