"""All that has happened to one trial, superseded work included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.reads import Table
from dllm_sweep.db.schema import Attempt, EventRow, FailureRow, Sweep, Trial, UnitRow

if TYPE_CHECKING:
    from dllm_sweep.db.reads import TrialDetail
    from dllm_sweep.db.store import SqlStore


@dataclass(frozen=True, kw_only=True)
class TrialHistory:
    """What happened to a trial, oldest first.

    Attributes:
        trial_id: Its number in the store.
        events: Changes of its state: when, attempt, from, to, by whom, why.
        attempts: Attempts: host, device, begin, end, how they ended, how long they took.
        units: Units that were committed: attempt, host, device, seconds; `superseded` if the
            weights they were measured on were replaced.
        failures: What went wrong.
    """

    trial_id: int
    events: Table
    attempts: Table
    units: Table
    failures: Table


def trial_history(store: SqlStore, detail: TrialDetail) -> TrialHistory:
    """The history of the trial that `store.trial_detail` found."""
    return store.reading(lambda connection: _history(connection, detail.trial))


def _history(connection: Connection, trial: dict[str, Any]) -> TrialHistory:
    found = connection.execute(
        sa.select(Trial.id, Trial.generation)
        .join(Sweep, Sweep.id == Trial.sweep_id)
        .where(Sweep.name == trial["sweep"], Trial.trial_key == trial["trial_key"])
    ).one()
    return TrialHistory(
        trial_id=found.id,
        events=_events(connection, found.id),
        attempts=_attempts(connection, found.id),
        units=_units(connection, found.id, found.generation),
        failures=_failures(connection, found.id),
    )


def _events(connection: Connection, trial_id: int) -> Table:
    event = EventRow.__table__.c
    query = sa.select(
        event.at_s, event.attempt, event.from_state, event.to_state, event.actor, event.reason
    )
    return _table(connection, query.where(event.trial_id == trial_id).order_by(event.id))


def _attempts(connection: Connection, trial_id: int) -> Table:
    attempt = Attempt.__table__.c
    query = sa.select(
        attempt.attempt,
        attempt.host,
        attempt.pid,
        attempt.device,
        attempt.batch_scale,
        attempt.started_s,
        attempt.ended_s,
        attempt.end_reason,
        (attempt.ended_s - attempt.started_s).label("seconds"),
    )
    return _table(connection, query.where(attempt.trial_id == trial_id).order_by(attempt.attempt))


def _units(connection: Connection, trial_id: int, generation: int) -> Table:
    unit = UnitRow.__table__.c
    query = (
        sa.select(
            unit.done_s,
            unit.unit_key,
            unit.attempt,
            unit.host,
            unit.device,
            unit.wall_s.label("seconds"),
            (unit.generation != generation).label("superseded"),
        )
        .where(unit.trial_id == trial_id, unit.state == "DONE")
        .order_by(unit.done_s, unit.generation, unit.position)
    )
    return _table(connection, query)


def _failures(connection: Connection, trial_id: int) -> Table:
    failure = FailureRow.__table__.c
    query = sa.select(
        failure.failed_s,
        failure.attempt,
        failure.worker,
        failure.reason,
        failure.unit,
        failure.error_type,
        failure.message,
        failure.fingerprint,
    )
    return _table(connection, query.where(failure.trial_id == trial_id).order_by(failure.failed_s))


def _table(connection: Connection, query: sa.Select[Any]) -> Table:
    result = connection.execute(query)
    return Table(tuple(result.keys()), tuple(tuple(row) for row in result))
