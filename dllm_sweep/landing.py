"""What becomes of a unit that has ended: the next one, another attempt, or the end of its trial."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from dllm_sweep.board import Board
from dllm_sweep.costs import Experience
from dllm_sweep.dispatch import Dispatcher, Flight
from dllm_sweep.errors import Fenced
from dllm_sweep.faults import DEATHS_LIMIT
from dllm_sweep.mirror import Mirror
from dllm_sweep.progress import Display
from dllm_sweep.records import EndReason, Failure, TrialState
from dllm_sweep.workers import failures
from dllm_sweep.workers.messages import Death, Finished, Outcome

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store
    from dllm_sweep.workers.pool import Pool

_AT_ONCE = frozenset({EndReason.LOST, EndReason.PREEMPTED, EndReason.ABORTED, EndReason.GPU_OOM})
"""Ends after which the store lets a trial be claimed again without a pause."""


class Lander:
    """Takes in how units ended and brings store, board and workers in step with it.

    Args:
        store: Where attempts end.
        pool: The workers.
        display: Told of what happens.
        board: The picture.
        mirror: What knows the work of a unit.
        desk: Who does what.
        experience: Learns from every unit that is done.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        store: Store,
        pool: Pool,
        display: Display,
        board: Board,
        mirror: Mirror,
        desk: Dispatcher,
        experience: Experience,
        clock: Callable[[], float],
    ) -> None:
        self._store, self._pool, self._display = store, pool, display
        self._board, self._mirror, self._desk = board, mirror, desk
        self._experience, self._clock = experience, clock
        self.senseless = ""
        """Why no worker can go on, once one has said so."""
        self.look_soon = False
        """Whether something happened of which only the store knows the consequence."""

    def land(self, finished: Finished) -> None:
        """Take in the end of one unit; what is not in flight any more is nobody's concern.

        Raises:
            StoreError: If the store cannot be written.
        """
        flight = self._desk.flights.pop(finished.worker, None)
        if flight is None:
            return
        if isinstance(finished.result, Death):
            self._died(flight, finished.result)
        else:
            self._ended(flight, finished.result)

    def _ended(self, flight: Flight, outcome: Outcome) -> None:
        self.senseless = self.senseless or outcome.stop
        if outcome.fresh_process:
            self._desk.end(flight.worker, "its process may be harmed")
        if outcome.failure is not None and outcome.state is not None:
            self._display.unit_failed(flight.worker, flight.subject, outcome.unit, outcome.failure)
            self._attempt_over(flight, outcome.failure, outcome.state)
        elif outcome.state is None:
            self._fenced(flight)
        else:
            self._committed(flight, outcome, outcome.state)

    def _committed(self, flight: Flight, outcome: Outcome, state: TrialState) -> None:
        job = flight.job
        self._display.unit_done(flight.worker, flight.subject, outcome.unit, outcome.wall_s)
        self._learn(flight, outcome.wall_s)
        self._board.land(job, flight.worker, done=True)
        if state is not TrialState.RUNNING:
            self._desk.drop(job)
            self._display.trial_ended(flight.subject, state, None)
        elif not job.todo and not job.flights and not self._desk.claim_again(job, flight.worker):
            # Units that were superseded since the claim was read run again; there are none.
            self.look_soon = True

    def _learn(self, flight: Flight, wall_s: float) -> None:
        host = self._desk.hosts[flight.worker]
        self._desk.breakers.used(host)
        own_s = wall_s - flight.load_s
        if own_s < wall_s / 2:
            return  # mostly loading, which says little of the work itself
        work = self._mirror.work_of(flight.job, flight.todo.unit)
        planned_s = flight.job.estimates.get(flight.todo.unit.key, 0.0)
        self._experience.learn(replace(work, device=host.device), planned_s, own_s)

    def _fenced(self, flight: Flight) -> None:
        """The store took nothing from this worker: ask what is left, if the trial is ours at all.

        It is if the result was measured on weights that have been superseded. If somebody else
        decides on it now, what the store says is followed soon.
        """
        job = flight.job
        self._display.unit_failed(flight.worker, flight.subject, flight.todo.unit, None)
        self._board.land(job, flight.worker, done=False)
        job.stale = True
        if not job.flights and not self._desk.claim_again(job, flight.worker):
            self._display.note(f"{flight.claim.label}: dropped, somebody else owns this trial now")
            job.ready_at_s = float("inf")
            self._board.put(job)
        self.look_soon = True

    def _died(self, flight: Flight, death: Death) -> None:
        self._desk.unseat(flight.worker, death.message)
        unit = flight.todo.unit
        poison = not death.machine_lost and self._desk.breakers.died(flight.job, unit.key)
        if death.reason is EndReason.LOST and poison:
            # Trying on would cost a process each time and end the same.
            message = f"{death.message}; {DEATHS_LIMIT} times in this unit"
            self._end(flight, EndReason.ERROR, message)
        elif death.reason is EndReason.ERROR or len(flight.job.flights) == 1:
            self._end(flight, death.reason, death.message)
        else:
            self._lose(flight, death)

    def _lose(self, flight: Flight, death: Death) -> None:
        """Charge the loss of one of several workers; the others go on."""
        failure = self._failure(flight, death.reason, death.message)
        try:
            state = self._store.lose_worker(flight.claim, failure, worker=str(flight.worker))
        except Fenced:
            self._fenced(flight)
            return
        self._display.unit_failed(flight.worker, flight.subject, flight.todo.unit, failure)
        if state is TrialState.RUNNING:
            self._board.land(flight.job, flight.worker, done=False)
        else:
            self._attempt_over(flight, failure, state)

    def end_overdue(self) -> None:
        """End the workers of units that have used up their time."""
        now_s = self._clock()
        for flight in list(self._desk.flights.values()):
            if now_s - flight.started_s <= flight.budget_s:
                continue
            if self._desk.flights.pop(flight.worker, None) is None:
                continue  # its crew has just been ended with another one's unit
            self._desk.end(flight.worker, "its unit hung")
            message = f"unit {flight.todo.unit.key} ran longer than {flight.budget_s:.0f} s"
            self._end(flight, EndReason.TIMEOUT, message)

    def _end(self, flight: Flight, reason: EndReason, message: str) -> None:
        """End an attempt whose worker cannot do it itself."""
        failure = self._failure(flight, reason, message)
        log = self._pool.log_path(flight.worker)
        try:
            state = self._store.end_attempt(flight.claim, failure, log_path=str(log))
        except Fenced:
            self._fenced(flight)
            return
        self._display.unit_failed(flight.worker, flight.subject, flight.todo.unit, failure)
        self._attempt_over(flight, failure, state)

    def _attempt_over(self, flight: Flight, failure: Failure, state: TrialState) -> None:
        """Requeue or forget a trial; whoever else is at it works for nothing and is ended."""
        job = flight.job
        self._board.land(job, flight.worker, done=False)
        for worker in list(job.flights):
            self._desk.end(worker, "its attempt is over")
        if state is TrialState.PENDING:
            job.orphaned = True
            job.ready_at_s = 0.0 if failure.reason in _AT_ONCE else float("inf")
            self._board.put(job)
            self.look_soon = True
        else:
            self._desk.drop(job)
        if state is TrialState.FAILED:
            host = self._desk.hosts.get(flight.worker)
            self._desk.breakers.failed(job, failure.fingerprint, host)
        self._display.trial_ended(flight.subject, state, failure)

    def _failure(self, flight: Flight, reason: EndReason, message: str) -> Failure:
        log = self._pool.log_path(flight.worker)
        return failures.lost(reason, message, flight.todo.unit, log)
