"""The one helper that every write goes through: a transaction, and a fence where one is due."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.engines import Engines
from dllm_sweep.db.faults import is_cut_short, one_line
from dllm_sweep.db.schema import Sweep, Trial
from dllm_sweep.errors import Fenced
from dllm_sweep.records import Claim, Lease, TrialState

T = TypeVar("T")


class Writer:
    """Runs writes, each in one transaction. Safe to use from several threads."""

    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one write transaction; it must be safe to repeat.

        A link that is cut around COMMIT leaves open whether it happened. The work is then run
        once more: it reads back what it finds and so tells the two cases apart. A transaction that
        the server ended to break a deadlock is run once more as well.

        Raises:
            StoreError: If the database fails; nothing of the work was kept.
        """
        with one_line(self._engines.name):
            try:
                return self._once(work)
            except DBAPIError as error:
                if not is_cut_short(error):
                    raise
            return self._once(work)

    def guarded(
        self,
        right: Lease | Claim,
        work: Callable[[Connection], T],
        *,
        settled: Callable[[Connection], T | None] = lambda connection: None,
    ) -> T:
        """Run `work` in a transaction that begins by proving that `right` still holds.

        Args:
            right: The lease or claim that the write is made under.
            work: The write.
            settled: Asked when the right is gone: the result if this very write has been made
                before, under the right, else None.

        Raises:
            Fenced: If somebody else has taken over; nothing is written.
        """

        def fenced(connection: Connection) -> T:
            if _hold(connection, right):
                return work(connection)
            answer = settled(connection)
            if answer is None:
                raise Fenced(_lost(right))
            return answer

        return self.run(fenced)

    def _once(self, work: Callable[[Connection], T]) -> T:
        with self._engines.write.begin() as connection:
            return work(connection)


def _hold(connection: Connection, right: Lease | Claim) -> bool:
    """Take the row lock of what `right` is about, if it still holds."""
    statement = _hold_claim(right) if isinstance(right, Claim) else _hold_lease(right)
    return connection.execute(statement).rowcount == 1


def _hold_lease(lease: Lease) -> sa.Update:
    return (
        sa.update(Sweep)
        .where(Sweep.id == lease.sweep_id, Sweep.epoch == lease.epoch)
        .values(epoch=lease.epoch)
    )


def _hold_claim(claim: Claim) -> sa.Update:
    same_epoch = sa.exists().where(Sweep.id == Trial.sweep_id, Sweep.epoch == claim.epoch)
    return (
        sa.update(Trial)
        .where(
            Trial.id == claim.trial_id,
            Trial.state == TrialState.RUNNING,
            Trial.attempt == claim.attempt,
            Trial.claim_id == claim.claim_id,
            Trial.epoch == claim.epoch,
            same_epoch,
        )
        .values(beat_s=db_now())
    )


def _lost(right: Lease | Claim) -> str:
    if isinstance(right, Lease):
        return f"sweep {right.sweep!r}: another controller has taken over from epoch {right.epoch}"
    return f"trial {right.trial_key[:12]}: attempt {right.attempt} no longer owns it"
