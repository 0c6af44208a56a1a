"""The store on SQLite or Postgres: every verb of `interface.Store`, and the reading commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dllm_sweep.db import claims, leases, planning, reads, results
from dllm_sweep.db.engines import Engines, one_line
from dllm_sweep.db.reads import Table, TrialDetail
from dllm_sweep.db.transaction import Writer
from dllm_sweep.db.transitions import DEFAULT_POLICY, RetryPolicy
from dllm_sweep.records import (
    Claim,
    Failure,
    Holder,
    HostInfo,
    Lease,
    PlannedTrial,
    SweepRow,
    TrialRow,
    TrialState,
    UnitResult,
)

if TYPE_CHECKING:
    import pyarrow


class SqlStore:
    """One store; `connect.open_store` makes it. Safe to use from several threads.

    On SQLite the writes of one process queue for its only writing connection; several processes
    may open the same file, but share it fairly only through one writer.
    """

    def __init__(self, engines: Engines, policy: RetryPolicy = DEFAULT_POLICY) -> None:
        self._engines = engines
        self._policy = policy
        self._write = Writer(engines)

    @property
    def url(self) -> str:
        """The store's address with the password hidden."""
        return self._engines.name

    def plan_sweep(self, name: str, source: str, trials: Sequence[PlannedTrial]) -> SweepRow:
        """Create or extend the sweep `name`: trials that it has already are left as they are."""
        self._write.run(lambda connection: planning.plan(connection, name, source, trials))
        return self.sweep(name)

    def sweep(self, name: str | None) -> SweepRow:
        """The sweep of this name, or the one launched last.

        Raises:
            UnknownName: If there is none.
        """
        with one_line(self.url), self._engines.read.begin() as connection:
            row = leases.find_sweep(connection, name)
        return SweepRow(id=row.id, name=row.name, source=row.source, paused=row.paused)

    def trials(self, sweep_id: int) -> tuple[TrialRow, ...]:
        """All trials of a sweep, highest priority first, then in planning order."""
        with one_line(self.url), self._engines.read.begin() as connection:
            return reads.trials(connection, sweep_id)

    def take_lease(
        self, sweep: str, holder: Holder, *, seconds: float, takeover: bool = False
    ) -> Lease:
        """Become the sweep's controller: epoch + 1; attempts of older epochs end as LOST.

        Raises:
            LeaseHeld: If another holder's lease has not run out and `takeover` is False.
            UnknownName: If there is no such sweep.
        """
        return self._write.run(
            lambda connection: leases.take(connection, sweep, holder, seconds, takeover)
        )

    def renew_lease(self, lease: Lease, *, seconds: float) -> None:
        """Extend the lease from now.

        Raises:
            Fenced: If another controller has taken over.
        """
        self._write.guarded(lease, lambda connection: leases.renew(connection, lease, seconds))

    def release_lease(self, lease: Lease) -> None:
        """Give the lease back; running attempts end as ABORTED, their trials go to PENDING.

        Raises:
            Fenced: If another controller has taken over.
        """
        self._write.guarded(lease, lambda connection: leases.release(connection, lease))

    def claim(self, lease: Lease, trial_id: int, claim_id: str, host: HostInfo) -> Claim | None:
        """Take a PENDING trial for one attempt, or None if it cannot be taken (any more).

        Raises:
            Fenced: If another controller has taken over.
        """
        return self._write.guarded(
            lease,
            lambda connection: claims.claim(connection, lease, trial_id, claim_id, host),
        )

    def commit_unit(self, claim: Claim, result: UnitResult) -> TrialState:
        """Make a unit's result durable and visible, once; the trial SUCCEEDS with its last unit.

        Raises:
            Fenced: If somebody else owns the trial now; nothing is written.
            StoreError: If the unit is not the trial's, or comes before `quantize`.
        """
        return self._write.guarded(
            claim,
            lambda connection: results.commit(connection, claim, result),
            settled=lambda connection: results.committed_before(connection, claim, result),
        )

    def end_attempt(
        self, claim: Claim, failure: Failure, *, log_path: str | None = None
    ) -> TrialState:
        """End an attempt without success; requeue the trial or fail it.

        Raises:
            Fenced: If somebody else owns the trial now; nothing is written.
        """
        return self._write.guarded(
            claim,
            lambda connection: claims.end(connection, claim, failure, log_path, self._policy),
            settled=lambda connection: claims.ended_before(connection, claim, failure),
        )

    def retry(
        self,
        sweep_id: int,
        *,
        states: Sequence[TrialState],
        reasons: Sequence[str] = (),
        keys: Sequence[str] = (),
    ) -> int:
        """Put trials in one of `states` back to PENDING with fresh budgets; returns how many.

        Raises:
            InputError: If trials in one of `states` may not be retried.
        """
        return self._write.run(
            lambda connection: claims.retry(connection, sweep_id, states, reasons, keys)
        )

    def cancel(self, sweep_id: int, *, keys: Sequence[str] = ()) -> int:
        """Cancel PENDING and RUNNING trials; a running attempt is fenced off at its next commit."""
        return self._write.run(lambda connection: claims.cancel(connection, sweep_id, keys))

    def pause(self, sweep_id: int, paused: bool) -> None:
        """Stop or go on handing out claims."""
        self._write.run(lambda connection: leases.set_paused(connection, sweep_id, paused))

    def query(self, sql: str, params: Sequence[object] = ()) -> Table:
        """Run one reading statement; `?` stands for each of `params`.

        Raises:
            InputError: If it is not one SELECT, WITH, VALUES or EXPLAIN, or the database refuses.
        """
        return reads.query(self._engines, sql, params)

    def leaderboard_rows(self, sweep: str | None = None) -> Table:
        """The view `leaderboard` of one sweep or of all, best first within protocol and model."""
        return reads.leaderboard(self._engines, sweep)

    def leaderboard(self, sweep: str | None = None) -> pyarrow.Table:
        """The view `leaderboard` as an Arrow table, for notebooks."""
        return self.leaderboard_rows(sweep).to_arrow()

    def trial_detail(self, key_prefix: str, sweep: str | None = None) -> TrialDetail:
        """Everything about the one trial whose key starts so.

        Raises:
            InputError: If no trial or several have such a key.
        """
        return reads.trial_detail(self._engines, key_prefix, sweep)

    def progress(self, sweep: str | None = None) -> Table:
        """The view `progress` of one sweep or of all."""
        return reads.progress(self._engines, sweep)

    def close(self) -> None:
        """Let go of connections."""
        self._engines.dispose()
