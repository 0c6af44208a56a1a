"""Bringing the controller's picture up to what the store says, seldom enough to cost nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dllm_sweep.board import Board
from dllm_sweep.costs import Experience, Work
from dllm_sweep.pieces import QUANTIZE, Job, Place, Todo
from dllm_sweep.records import Demand, TrialRow, TrialState, UnitStanding
from dllm_sweep.spec import Unit

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store


class Mirror:
    """Reads a sweep's trials and keeps the board in step with them.

    Args:
        store: The truth.
        sweep_id: The sweep.
        board: The picture.
        demand_of: The size of worker that a trial needs.
        experience: Turns planned seconds into likely ones.
    """

    def __init__(
        self,
        store: Store,
        sweep_id: int,
        board: Board,
        demand_of: Callable[[TrialRow], Demand],
        experience: Experience,
    ) -> None:
        self._store, self._sweep_id, self._board = store, sweep_id, board
        self._demand_of, self._experience = demand_of, experience
        self.trials: tuple[TrialRow, ...] = ()

    def refresh(self, sweep: str, now_s: float) -> list[tuple[Job, TrialState]]:
        """Read the store.

        Returns:
            Jobs that others have ended while workers of ours were at them, with their new state.

        Raises:
            StoreError: If the store cannot be read.
        """
        self._board.paused = self._store.sweep(sweep).paused
        self.trials = self._store.trials(self._sweep_id)
        self._add(row for row in self.trials if self._is_new(row))
        ended = []
        for row in self.trials:
            job = self._board.jobs.get(row.id)
            if job is not None and self._follow(job, row, now_s):
                ended.append((job, row.state))
        return ended

    def todo(self, job: Job, position: int, unit: Unit) -> Todo:
        """A unit that is to do, with its likely cost."""
        factor = self._experience.factor(self.work_of(job, unit))
        cost_s = job.estimates.get(unit.key, 0.0) * factor
        return Todo(unit=unit, cost_s=cost_s, position=position)

    def work_of(self, job: Job, unit: Unit) -> Work:
        """What the time of a unit depends on."""
        work = unit.task or unit.kind
        return Work(model=job.model, method=job.method, scheme=job.scheme, work=work)

    def _is_new(self, row: TrialRow) -> bool:
        return row.state is TrialState.PENDING and row.id not in self._board.jobs

    def _add(self, rows: Iterable[TrialRow]) -> None:
        new = list(rows)
        if not new:
            return
        for row in self.trials:
            if row.units_done > 1 or row.state in (TrialState.SUCCEEDED, TrialState.FAILED):
                self._board.probed.add((row.model, row.method))
        units = defaultdict(list)
        for standing in self._store.units(self._sweep_id):
            units[standing.trial_id].append(standing)
        for row in new:
            # Where a pause after a failure is still on, `_follow` says until when.
            self._board.put(self._job(row, units[row.id]))

    def _job(self, row: TrialRow, units: Sequence[UnitStanding]) -> Job:
        planned_s = sum(standing.estimated_s for standing in units)
        job = Job(
            id=row.id,
            key=row.key,
            label=row.label,
            model=row.model,
            method=row.method,
            scheme=row.scheme,
            demand=self._demand_of(row),
            load_s=max(row.estimated_s - planned_s, 0.0),
            estimates={standing.unit.key: standing.estimated_s for standing in units},
            orphaned=row.attempt > 0,
        )
        left = [(at, standing.unit) for at, standing in enumerate(units) if not standing.done]
        job.set_todo(self.todo(job, at, unit) for at, unit in left)
        job.quantized = QUANTIZE not in job.todo
        return job

    def _follow(self, job: Job, row: TrialRow, now_s: float) -> bool:
        """Bring one job in step; True if others have ended it while workers are at it."""
        if row.state is TrialState.PENDING:
            if job.flights:
                return False  # its worker has ended the attempt; that will be heard in a moment
            paused_s = now_s + row.ready_in_s if row.ready_in_s > 0 else 0.0
            if job.place in (Place.OPEN, Place.LATER) or paused_s:
                job.ready_at_s, job.orphaned = paused_s, row.attempt > 0
                self._board.put(job)
            return False
        if row.state is TrialState.RUNNING:
            return False
        if row.state in (TrialState.CANCELLED, TrialState.PRUNED) and job.flights:
            return True
        if not job.flights:
            self._board.remove(job)
        return False
