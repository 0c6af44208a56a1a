"""Sweeps at a glance: who runs them, how far they are. Made for stores with thousands of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.schema import Attempt, Sweep, Trial, UnitRow
from dllm_sweep.records import OPEN_STATES, Holder, TrialState

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

_CURRENT = (UnitRow.trial_id == Trial.id) & (UnitRow.generation == Trial.generation)


@dataclass(frozen=True, kw_only=True)
class SweepStanding:
    """One sweep as it stands.

    Attributes:
        name: Its name.
        launched_s: When it was last launched, in epoch seconds.
        paused: Whether it hands out no new work.
        controller: Who runs it, or ran it last without giving the lease back; None if nobody.
        lease_left_s: Seconds until the lease runs out; negative if it has.
        trials: Number of trials by state.
        units: Units of trials that are not skipped, cancelled or given up.
        units_done: How many of them are committed.
        left_s: Estimated seconds of work left, on one worker, corrected by how long the units done
            so far took against their estimates.
    """

    name: str
    launched_s: float
    paused: bool
    controller: Holder | None
    lease_left_s: float | None
    trials: Mapping[TrialState, int]
    units: int
    units_done: int
    left_s: float

    @property
    def is_over(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not any(self.trials.get(state) for state in OPEN_STATES)

    @property
    def is_run(self) -> bool:
        """Whether a controller holds the lease."""
        return self.lease_left_s is not None and self.lease_left_s > 0


@dataclass(frozen=True, kw_only=True)
class TrialLine:
    """One trial for the eye.

    Attributes:
        key: Its key.
        label: Its name for people.
        state: Its state.
        units: Number of its units.
        units_done: How many of them are committed.
        attempt: Number of its latest attempt.
        reason: Why it failed or was put back.
        host: The machine of its latest attempt; None if it has not run.
        device: The device there.
        running_s: Seconds since the attempt began.
        silent_s: Seconds since the last sign of life of a running trial.
        ready_in_s: Seconds until it may run again.
    """

    key: str
    label: str
    state: TrialState
    units: int
    units_done: int
    attempt: int
    reason: str
    host: str | None
    device: str | None
    running_s: float | None
    silent_s: float | None
    ready_in_s: float


def sweeps(store: SqlStore, name: str | None = None) -> tuple[SweepStanding, ...]:
    """All sweeps, launched last first, or the one of this name."""
    return store.reading(lambda connection: _sweeps(connection, name))


def _sweeps(connection: Connection, name: str | None) -> tuple[SweepStanding, ...]:
    sweep = Sweep.__table__.c
    query = sa.select(
        sweep.id,
        sweep.name,
        sweep.launched_s,
        sweep.paused,
        sweep.controller_host,
        sweep.controller_pid,
        sweep.process_started_s,
        (sweep.lease_until_s - db_now()).label("lease_left_s"),
    ).order_by(sweep.launched_s.desc(), sweep.id.desc())
    if name is not None:
        query = query.where(sweep.name == name)
    rows = connection.execute(query).all()
    ids = [row.id for row in rows]
    trials, units = _trial_counts(connection, ids), _unit_counts(connection, ids)
    return tuple(_standing(row, trials.get(row.id, {}), units.get(row.id)) for row in rows)


def _standing(row: Any, trials: Mapping[TrialState, int], units: Any) -> SweepStanding:
    pid = row.controller_pid
    started_s = row.process_started_s or 0.0
    holder = Holder(host=row.controller_host or "", pid=pid or 0, process_started_s=started_s)
    return SweepStanding(
        name=row.name,
        launched_s=row.launched_s,
        paused=row.paused,
        controller=None if pid is None else holder,
        lease_left_s=row.lease_left_s,
        trials=trials,
        units=0 if units is None else units.units,
        units_done=0 if units is None else units.units_done,
        left_s=0.0 if units is None else _left_s(units),
    )


def _left_s(units: Any) -> float:
    """What is left by the estimates, corrected by how wrong they have been so far."""
    learnt: float = units.spent_s / units.spent_estimated_s if units.spent_estimated_s else 1.0
    return float(units.left_s) * learnt


def _trial_counts(connection: Connection, ids: Sequence[int]) -> dict[int, dict[TrialState, int]]:
    query = (
        sa.select(Trial.sweep_id, Trial.state, sa.func.count())
        .where(Trial.sweep_id.in_(ids))
        .group_by(Trial.sweep_id, Trial.state)
    )
    found: dict[int, dict[TrialState, int]] = {}
    for sweep_id, state, number in connection.execute(query):
        found.setdefault(sweep_id, {})[TrialState(state)] = number
    return found


def _unit_counts(connection: Connection, ids: Sequence[int]) -> dict[int, Any]:
    unit = UnitRow.__table__.c
    done = unit.state == "DONE"
    waits = sa.and_(unit.state != "DONE", Trial.state.in_(OPEN_STATES))
    # What was taken over from another sweep took no time here, and tells nothing of this one's.
    own = Trial.reused_from.is_(None)
    measured = sa.and_(done, own, unit.wall_s.is_not(None), unit.estimated_s > 0)
    query = (
        sa.select(
            Trial.sweep_id,
            sa.func.count().label("units"),
            _sum(done, sa.literal(1)).label("units_done"),
            _sum(waits, unit.estimated_s).label("left_s"),
            _sum(measured, unit.wall_s).label("spent_s"),
            _sum(measured, unit.estimated_s).label("spent_estimated_s"),
        )
        .join(Trial, _CURRENT)
        .where(Trial.sweep_id.in_(ids), Trial.state.in_((*OPEN_STATES, "SUCCEEDED", "FAILED")))
        .group_by(Trial.sweep_id)
    )
    return {row.sweep_id: row for row in connection.execute(query)}


def _sum(condition: Any, value: Any) -> sa.ColumnElement[Any]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, value))), 0)


def trial_lines(
    store: SqlStore, sweep: str, *, states: Sequence[TrialState], limit: int | None = None
) -> tuple[TrialLine, ...]:
    """Trials of a sweep in some states, highest priority first, then in planning order."""
    trial, attempt = Trial.__table__.c, Attempt.__table__.c
    latest = (attempt.trial_id == trial.id) & (attempt.attempt == trial.attempt)
    query = (
        sa.select(
            trial.id,
            trial.trial_key.label("key"),
            trial.label,
            trial.state,
            trial.attempt,
            trial.reason,
            attempt.host,
            attempt.device,
            (db_now() - attempt.started_s).label("running_s"),
            (db_now() - sa.func.coalesce(trial.beat_s, trial.started_s)).label("silent_s"),
            (trial.not_before_s - db_now()).label("ready_in_s"),
        )
        .outerjoin(Attempt, latest)
        .join(Sweep, Sweep.id == trial.sweep_id)
        .where(Sweep.name == sweep, trial.state.in_(states))
        .order_by(trial.priority.desc(), trial.id)
        .limit(limit)
    )
    return store.reading(lambda connection: _lines(connection, query))


def _lines(connection: Connection, query: sa.Select[Any]) -> tuple[TrialLine, ...]:
    rows = connection.execute(query).all()
    counts = _units_of(connection, [row.id for row in rows])
    return tuple(
        TrialLine(
            **{name: value for name, value in row._mapping.items() if name not in ("id", "state")},
            state=TrialState(row.state),
            units=counts.get(row.id, (0, 0))[0],
            units_done=counts.get(row.id, (0, 0))[1],
        )
        for row in rows
    )


def _units_of(connection: Connection, trial_ids: Sequence[int]) -> dict[int, tuple[int, int]]:
    found: dict[int, tuple[int, int]] = {}
    for start in range(0, len(trial_ids), 500):
        query = (
            sa.select(
                UnitRow.trial_id, sa.func.count(), _sum(UnitRow.state == "DONE", sa.literal(1))
            )
            .join(Trial, _CURRENT)
            .where(UnitRow.trial_id.in_(trial_ids[start : start + 500]))
            .group_by(UnitRow.trial_id)
        )
        found |= {trial: (units, done) for trial, units, done in connection.execute(query)}
    return found
