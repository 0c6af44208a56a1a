"""How attempts end without success: by a failure, by losing too many workers, by racing."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import end_attempts, lock, move
from dllm_sweep.db.logbook import plain
from dllm_sweep.db.schema import Attempt, FailureRow, Trial
from dllm_sweep.db.transitions import (
    Actor,
    RetryPolicy,
    Standing,
    after,
    after_loss,
    loss_text,
    reason_text,
    sources,
)
from dllm_sweep.errors import StoreError
from dllm_sweep.records import Claim, EndReason, Failure, Lease, TrialState


def end(
    connection: Connection,
    owned: Claim,
    failure: Failure,
    log_path: str | None,
    policy: RetryPolicy,
) -> TrialState:
    """End an attempt without success; the trial is requeued or fails."""
    before = _standing(connection, owned)
    standing = after(failure.reason, failure.retryable, before, policy)
    _put_failure(connection, owned, failure, worker="")
    _close(connection, owned, failure, standing)
    _set_log(connection, owned, log_path)
    return standing.state


def lose(
    connection: Connection, owned: Claim, failure: Failure, worker: str, policy: RetryPolicy
) -> TrialState:
    """Charge the loss of one worker; the attempt goes on unless the budget is used up."""
    before = _standing(connection, owned)
    if _failed_before(connection, owned, worker):
        return TrialState.RUNNING
    standing = after_loss(failure.reason, before, policy)
    _put_failure(connection, owned, failure, worker=worker)
    if standing.state is TrialState.RUNNING:
        this = Trial.id == owned.trial_id
        going, reason = TrialState.RUNNING, loss_text(failure)
        move(connection, this, going, going, Actor.OWNER, reason, losses=standing.losses)
    else:
        _close(connection, owned, failure, standing)
    return standing.state


def ended_before(
    connection: Connection, owned: Claim, failure: Failure, worker: str = ""
) -> TrialState | None:
    """The trial's state if this attempt has been ended by this very failure before."""
    query = (
        sa.select(Trial.state)
        .join(Attempt, (Attempt.trial_id == Trial.id) & (Attempt.attempt == Trial.attempt))
        .join(
            FailureRow,
            (FailureRow.trial_id == Trial.id) & (FailureRow.attempt == Trial.attempt),
        )
        .where(Trial.id == owned.trial_id, Trial.attempt == owned.attempt)
        .where(Attempt.claim_id == owned.claim_id, Attempt.end_reason == failure.reason)
        .where(FailureRow.worker == worker)
    )
    state = connection.scalar(query)
    return None if state is None else TrialState(state)


def prune(connection: Connection, lease: Lease, trial_id: int, evidence: str) -> bool:
    """Give up a trial that is not over; True also if this very call has done so before.

    Raises:
        StoreError: If the trial is a baseline.
    """
    this = sa.and_(Trial.id == trial_id, Trial.sweep_id == lease.sweep_id)
    lock(connection, this)
    trial = Trial.__table__.c
    columns = trial.state, trial.reason, trial.is_baseline, trial.label
    row = connection.execute(sa.select(*columns).where(this)).first()
    if row is None:
        return False
    refuse_pruning(row.is_baseline, row.label)
    if row.state not in sources(TrialState.PRUNED, Actor.CONTROLLER):
        return bool(row.state == TrialState.PRUNED and row.reason == evidence)
    end_attempts(connection, this, EndReason.ABORTED)
    start, to = TrialState(row.state), TrialState.PRUNED
    return move(connection, this, start, to, Actor.CONTROLLER, evidence) == 1


def refuse_pruning(is_baseline: bool, label: str) -> None:
    """Refuse to prune a baseline.

    Raises:
        StoreError: If it is one.
    """
    if is_baseline:
        raise StoreError(f"trial {label} is a baseline: others are compared with it, not raced")


def _standing(connection: Connection, owned: Claim) -> Standing:
    columns = Trial.failures, Trial.losses, Trial.batch_scale
    row = connection.execute(sa.select(*columns).where(Trial.id == owned.trial_id)).one()
    return Standing(failures=row.failures, losses=row.losses, batch_scale=row.batch_scale)


def _close(connection: Connection, owned: Claim, failure: Failure, standing: Standing) -> None:
    this = Trial.id == owned.trial_id
    end_attempts(connection, this, failure.reason)
    move(
        connection,
        this,
        TrialState.RUNNING,
        standing.state,
        Actor.OWNER,
        reason_text(failure),
        failures=standing.failures,
        losses=standing.losses,
        batch_scale=standing.batch_scale,
        not_before_s=db_now() + standing.delay_s,
    )


def _failed_before(connection: Connection, owned: Claim, worker: str) -> bool:
    query = sa.select(FailureRow.worker).where(
        FailureRow.trial_id == owned.trial_id,
        FailureRow.attempt == owned.attempt,
        FailureRow.worker == worker,
    )
    return connection.execute(query).first() is not None


def _put_failure(connection: Connection, owned: Claim, failure: Failure, *, worker: str) -> None:
    row = dataclasses.asdict(failure)
    for name in ("error_type", "message", "traceback", "fingerprint", "log_tail"):
        row[name] = plain(row[name])
    row |= {"trial_id": owned.trial_id, "attempt": owned.attempt, "worker": worker}
    connection.execute(sa.insert(FailureRow).values(row | {"failed_s": db_now()}))


def _set_log(connection: Connection, owned: Claim, log_path: str | None) -> None:
    connection.execute(
        sa.update(Attempt)
        .where(Attempt.trial_id == owned.trial_id, Attempt.attempt == owned.attempt)
        .values(log_path=log_path)
    )
