"""The lease of a sweep's controller: taken by compare-and-swap of the epoch."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import end_attempts, lock, move
from dllm_sweep.db.schema import Sweep, Trial
from dllm_sweep.db.transitions import Actor, taken_back
from dllm_sweep.errors import LeaseHeld, UnknownName
from dllm_sweep.records import EndReason, Holder, Lease, SweepRow, TrialState


def find_sweep(connection: Connection, name: str | None, *, lock: bool = False) -> Row[Any]:
    """The sweep of this name, or the one launched last.

    Raises:
        UnknownName: If there is none.
    """
    query = sa.select(Sweep.__table__)
    if name is None:
        query = query.order_by(Sweep.launched_s.desc(), Sweep.id.desc()).limit(1)
    else:
        query = query.where(Sweep.name == name)
    # A commit refers to the sweep while it holds its trial: only what is not a key is locked here,
    # or a takeover and a commit would wait for each other.
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).first()
    if row is None:
        raise UnknownName("sweep", name or "", connection.scalars(sa.select(Sweep.name)))
    return row


def sweep_row(connection: Connection, name: str | None) -> SweepRow:
    """The sweep of this name, or the one launched last, with the number of its reused trials.

    Raises:
        UnknownName: If there is none.
    """
    row = find_sweep(connection, name)
    reused = sa.select(sa.func.count()).where(
        Trial.sweep_id == row.id, Trial.reused_from.is_not(None)
    )
    return SweepRow(
        id=row.id,
        name=row.name,
        source=row.source,
        paused=row.paused,
        reused=connection.scalar(reused) or 0,
    )


def take(
    connection: Connection,
    name: str,
    holder: Holder,
    seconds: float,
    takeover: bool,
    dead: Holder | None,
) -> Lease:
    """Become the controller of the sweep; attempts of older epochs end as LOST."""
    row = find_sweep(connection, name, lock=True)
    if not takeover:
        _refuse_if_held(connection, row, (holder, dead))
    epoch = row.epoch + 1
    connection.execute(
        sa.update(Sweep)
        .where(Sweep.id == row.id)
        .values(
            epoch=epoch,
            controller_host=holder.host,
            controller_pid=holder.pid,
            process_started_s=holder.process_started_s,
            lease_until_s=db_now() + seconds,
        )
    )
    _requeue_running(connection, row.id, EndReason.LOST)
    return Lease(sweep_id=row.id, sweep=row.name, epoch=epoch, holder=holder)


def renew(connection: Connection, lease: Lease, seconds: float) -> None:
    """Extend the lease from now."""
    until = db_now() + seconds
    connection.execute(
        sa.update(Sweep).where(Sweep.id == lease.sweep_id).values(lease_until_s=until)
    )


def release(connection: Connection, lease: Lease) -> bool:
    """Give the lease back: running attempts end as ABORTED; always True.

    The epoch goes up with it, so that nothing can be written under the old lease any more.
    """
    _requeue_running(connection, lease.sweep_id, EndReason.ABORTED)
    connection.execute(
        sa.update(Sweep)
        .where(Sweep.id == lease.sweep_id)
        .values(
            epoch=lease.epoch + 1,
            controller_host=None,
            controller_pid=None,
            process_started_s=None,
            lease_until_s=None,
        )
    )
    return True


def released_before(connection: Connection, lease: Lease) -> bool | None:
    """True if this lease has been given back and nobody has taken it since, else None."""
    query = sa.select(Sweep.id).where(
        Sweep.id == lease.sweep_id,
        Sweep.epoch == lease.epoch + 1,
        Sweep.controller_host.is_(None),
    )
    return None if connection.scalar(query) is None else True


def _refuse_if_held(
    connection: Connection, row: Row[Any], unless_by: tuple[Holder | None, ...]
) -> None:
    if row.lease_until_s is None:
        return
    left_s = row.lease_until_s - (connection.scalar(sa.select(db_now())) or 0.0)
    host, pid, started_s = row.controller_host, row.controller_pid, row.process_started_s
    other = Holder(host=host, pid=pid, process_started_s=started_s)
    if left_s > 0 and other not in unless_by:
        raise LeaseHeld(row.name, host, pid, started_s, left_s, row.lease_until_s)


def _requeue_running(connection: Connection, sweep_id: int, end: EndReason) -> None:
    running = sa.and_(Trial.sweep_id == sweep_id, Trial.state == TrialState.RUNNING)
    lock(connection, running)
    end_attempts(connection, running, end)
    move(
        connection,
        running,
        TrialState.RUNNING,
        TrialState.PENDING,
        Actor.CONTROLLER,
        taken_back(end),
    )


def set_paused(connection: Connection, sweep_id: int, paused: bool) -> None:
    """Stop or go on handing out claims of a sweep."""
    connection.execute(sa.update(Sweep).where(Sweep.id == sweep_id).values(paused=paused))
