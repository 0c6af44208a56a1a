"""Moves of trials from state to state, each with its line in the audit table."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.logbook import plain
from dllm_sweep.db.schema import Attempt, EventRow, Trial
from dllm_sweep.db.transitions import Actor, check
from dllm_sweep.records import EndReason, TrialState

_COLUMNS = ("trial_id", "attempt", "at_s", "from_state", "to_state", "actor", "reason")


def lock(connection: Connection, trials: sa.ColumnElement[bool]) -> None:
    """Keep other transactions off `trials`, so that what follows finds them in one state.

    Call it before anything that touches attempts: a commit locks its trial first as well, and two
    transactions that lock in opposite orders wait for each other for ever.
    """
    chosen = sa.select(Trial.id).where(trials).order_by(Trial.id)
    connection.execute(chosen.with_for_update(key_share=True))


def move(
    connection: Connection,
    trials: sa.ColumnElement[bool],
    start: TrialState,
    to: TrialState,
    by: Actor,
    reason: str,
    **values: Any,
) -> int:
    """Move all `trials` that are in `start` to `to`, logging each; returns how many.

    Raises:
        StoreError: If the move is not legal.
    """
    check(start, to, by)
    reason = plain(reason)
    chosen = sa.and_(trials, Trial.state == start)
    attempt = values.get("attempt", Trial.attempt)
    selected = sa.select(
        Trial.id, attempt, db_now(), Trial.state, *_literals(to, by, reason)
    ).where(chosen)
    connection.execute(sa.insert(EventRow).from_select(_COLUMNS, selected))
    if to is not TrialState.RUNNING:
        values["claim_id"] = None
    if to is not TrialState.PENDING and to is not start:
        stamp = "started_s" if to is TrialState.RUNNING else "finished_s"
        values[stamp] = db_now()
    statement = sa.update(Trial).where(chosen).values(state=to, reason=reason, **values)
    return connection.execute(statement).rowcount


def log_created(connection: Connection, sweep_id: int, after_id: int) -> None:
    """Log the creation of a sweep's trials with numbers above `after_id`."""
    selected = sa.select(
        Trial.id,
        Trial.attempt,
        db_now(),
        sa.null(),
        Trial.state,
        sa.literal(str(Actor.PLANNER)),
        Trial.reason,
    ).where(Trial.sweep_id == sweep_id, Trial.id > after_id)
    connection.execute(sa.insert(EventRow).from_select(_COLUMNS, selected))


def end_attempts(connection: Connection, trials: sa.ColumnElement[bool], reason: EndReason) -> None:
    """End the running attempts of all `trials` that are RUNNING; call it before moving them."""
    running = sa.select(Trial.id).where(trials, Trial.state == TrialState.RUNNING)
    connection.execute(
        sa.update(Attempt)
        .where(Attempt.trial_id.in_(running), Attempt.ended_s.is_(None))
        .values(ended_s=db_now(), end_reason=reason)
    )


def _literals(to: TrialState, by: Actor, reason: str) -> tuple[Any, ...]:
    return sa.literal(str(to)), sa.literal(str(by)), sa.literal(reason)
