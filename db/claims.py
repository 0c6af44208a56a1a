"""Claiming a trial for an attempt, and the user's verbs that end one or ask for another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import end_attempts, lock, move
from dllm_sweep.db.schema import ArtifactRow, Attempt, Sweep, Trial, UnitRow
from dllm_sweep.db.transitions import Actor, RetryPolicy, sources
from dllm_sweep.errors import InputError
from dllm_sweep.records import (
    Artifact,
    Claim,
    EndReason,
    HostInfo,
    Lease,
    TrialState,
)
from dllm_sweep.spec import TrialSpec, Unit, from_json


def claim(
    connection: Connection,
    lease: Lease,
    trial_id: int,
    claim_id: str,
    host: HostInfo,
    policy: RetryPolicy,
) -> Claim | None:
    """Take a PENDING trial for one attempt; None if it cannot be taken (any more)."""
    this = sa.and_(Trial.id == trial_id, Trial.sweep_id == lease.sweep_id)
    lock(connection, this)
    if _is_mine(connection, lease, trial_id, claim_id):
        return _claim_of(connection, trial_id, claim_id)
    paused = sa.exists().where(Sweep.id == Trial.sweep_id, Sweep.paused)
    taken = move(
        connection,
        sa.and_(this, waits_s(policy) <= 0, ~paused),
        TrialState.PENDING,
        TrialState.RUNNING,
        Actor.CONTROLLER,
        "",
        attempt=Trial.attempt + 1,
        claim_id=claim_id,
        epoch=lease.epoch,
        beat_s=db_now(),
    )
    if not taken:
        return None
    _put_attempt(connection, trial_id, host)
    return _claim_of(connection, trial_id, claim_id)


def waits_s(policy: RetryPolicy) -> sa.ColumnElement[float]:
    """Seconds until a trial may be claimed: `transitions.waits_s` in SQL."""
    left_s = Trial.not_before_s - db_now()
    return sa.case((left_s <= policy.backoff_cap_s, left_s), else_=0.0)


def retry(
    connection: Connection,
    sweep_id: int,
    states: Sequence[TrialState],
    reasons: Sequence[str],
    keys: Sequence[str],
) -> int:
    """Put trials back to PENDING with fresh budgets; returns how many."""
    refuse_illegal_retry(states)
    chosen = sa.and_(Trial.sweep_id == sweep_id, _has_key(keys), _ended_for(reasons))
    lock(connection, chosen)
    fresh: dict[str, Any] = {"failures": 0, "losses": 0, "batch_scale": 1.0, "not_before_s": 0.0}
    return sum(
        move(
            connection, chosen, state, TrialState.PENDING, Actor.USER, "", finished_s=None, **fresh
        )
        for state in dict.fromkeys(states)
    )


def cancel(connection: Connection, sweep_id: int, keys: Sequence[str]) -> int:
    """Cancel PENDING and RUNNING trials; returns how many."""
    chosen = sa.and_(Trial.sweep_id == sweep_id, _has_key(keys))
    lock(connection, chosen)
    end_attempts(connection, chosen, EndReason.ABORTED)
    return sum(
        move(connection, chosen, state, TrialState.CANCELLED, Actor.USER, "cancelled by the user")
        for state in sources(TrialState.CANCELLED, Actor.USER)
    )


def refuse_illegal_retry(states: Sequence[TrialState]) -> None:
    """Refuse to retry trials that are not over or that succeeded.

    Raises:
        InputError: If one of `states` may not go back to PENDING.
    """
    legal = sources(TrialState.PENDING, Actor.USER)
    wrong = [state for state in states if state not in legal]
    if wrong:
        listed = ", ".join(legal)
        raise InputError(f"trials that are {wrong[0]} cannot be retried, only those {listed}")


def _is_mine(connection: Connection, lease: Lease, trial_id: int, claim_id: str) -> bool:
    query = sa.select(Trial.id).where(
        Trial.id == trial_id,
        Trial.sweep_id == lease.sweep_id,
        Trial.state == TrialState.RUNNING,
        Trial.claim_id == claim_id,
        Trial.epoch == lease.epoch,
    )
    return connection.scalar(query) is not None


def _claim_of(connection: Connection, trial_id: int, claim_id: str) -> Claim:
    trial = connection.execute(sa.select(Trial.__table__).where(Trial.id == trial_id)).one()
    row = UnitRow.__table__.c
    units = connection.execute(
        sa.select(row.kind, row.task, row.shard, row.shards, row.state)
        .where(row.trial_id == trial_id, row.generation == trial.generation)
        .order_by(row.position)
    ).all()
    planned = [Unit(kind=u.kind, task=u.task, shard=u.shard, shards=u.shards) for u in units]
    done = (unit.key for unit, u in zip(planned, units, strict=True) if u.state == "DONE")
    return Claim(
        trial_id=trial_id,
        trial_key=trial.trial_key,
        attempt=trial.attempt,
        epoch=trial.epoch,
        claim_id=claim_id,
        label=trial.label,
        trial=from_json(TrialSpec, trial.spec),
        done=tuple(done),
        units=tuple(planned),
        weights=_weights_of(connection, trial),
        batch_scale=trial.batch_scale,
    )


def _weights_of(connection: Connection, trial: Row[Any]) -> Artifact | None:
    row = connection.execute(
        sa.select(ArtifactRow.kind, ArtifactRow.path, ArtifactRow.sha256, ArtifactRow.bytes)
        .where(ArtifactRow.trial_id == trial.id, ArtifactRow.generation == trial.generation)
        .where(ArtifactRow.kind == "weights")
    ).first()
    return None if row is None else Artifact(**row._mapping)


def _put_attempt(connection: Connection, trial_id: int, host: HostInfo) -> None:
    trial = Trial.__table__.c
    selected = sa.select(
        trial.id,
        trial.attempt,
        trial.epoch,
        trial.claim_id,
        sa.literal(host.host),
        sa.literal(host.pid),
        sa.literal(host.device),
        sa.literal(dict(host.versions), sa.JSON()),
        trial.batch_scale,
        db_now(),
    ).where(trial.id == trial_id)
    columns = "trial_id attempt epoch claim_id host pid device versions batch_scale started_s"
    connection.execute(sa.insert(Attempt).from_select(columns.split(), selected))


def _has_key(keys: Sequence[str]) -> sa.ColumnElement[bool]:
    if not keys:
        return sa.true()
    return sa.or_(*(Trial.trial_key.startswith(key, autoescape=True) for key in keys))


def _ended_for(reasons: Sequence[str]) -> sa.ColumnElement[bool]:
    if not reasons:
        return sa.true()
    return sa.exists().where(
        Attempt.trial_id == Trial.id,
        Attempt.attempt == Trial.attempt,
        Attempt.end_reason.in_(list(reasons)),
    )
