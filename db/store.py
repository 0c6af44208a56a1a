"""The store on SQLite or Postgres: every verb of `interface.Store`, and the reading commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy.engine import Connection

from dllm_sweep.db import board, claims, endings, leases, logbook, planning, reads, results
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
    LogChunk,
    PlannedTrial,
    Score,
    SweepRow,
    TrialRow,
    TrialState,
    UnitResult,
    UnitStanding,
    UnitTime,
)

if TYPE_CHECKING:
    import pyarrow

T = TypeVar("T")


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

    def plan_sweep(
        self, name: str, source: str, trials: Sequence[PlannedTrial], *, reuse: bool = True
    ) -> SweepRow:
        """Create or extend the sweep `name`: trials that it has already are left as they are.

        With `reuse`, what has SUCCEEDED in another sweep of this store is taken from there.
        """
        self._write.run(
            lambda connection: planning.plan(connection, name, source, trials, reuse_results=reuse)
        )
        return self.sweep(name)

    def sweep(self, name: str | None) -> SweepRow:
        """The sweep of this name, or the one launched last.

        Raises:
            UnknownName: If there is none.
        """
        return self._read(lambda connection: leases.sweep_row(connection, name))

    def trials(self, sweep_id: int) -> tuple[TrialRow, ...]:
        """All trials of a sweep, highest priority first, then in planning order."""
        return self._read(lambda connection: board.trials(connection, sweep_id, self._policy))

    def units(self, sweep_id: int) -> tuple[UnitStanding, ...]:
        """All units of a sweep's PENDING and RUNNING trials, in the order in which they run."""
        return self._read(lambda connection: board.units(connection, sweep_id))

    def unit_times(self) -> tuple[UnitTime, ...]:
        """How long the newest committed units of each kind took in all sweeps, oldest first."""
        return self._read(board.unit_times)

    def scores(self, sweep_id: int) -> tuple[Score, ...]:
        """The primary scores of all tasks that are wholly committed."""
        return self._read(lambda connection: board.scores(connection, sweep_id))

    def logs(self, trial_id: int, *, after: int = 0) -> tuple[LogChunk, ...]:
        """What a trial's workers printed, oldest first, from the chunk after number `after` on."""
        return self._read(lambda connection: logbook.read(connection, trial_id, after))

    def take_lease(
        self,
        sweep: str,
        holder: Holder,
        *,
        seconds: float,
        takeover: bool = False,
        dead: Holder | None = None,
    ) -> Lease:
        """Become the sweep's controller: epoch + 1; attempts of older epochs end as LOST.

        Raises:
            LeaseHeld: If another holder's lease has not run out and `takeover` is False.
            UnknownName: If there is no such sweep.
        """
        return self._write.run(
            lambda connection: leases.take(connection, sweep, holder, seconds, takeover, dead)
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
        self._write.guarded(
            lease,
            lambda connection: leases.release(connection, lease),
            settled=lambda connection: leases.released_before(connection, lease),
        )

    def claim(self, lease: Lease, trial_id: int, claim_id: str, host: HostInfo) -> Claim | None:
        """Take a PENDING trial for one attempt, or None if it cannot be taken (any more).

        Raises:
            Fenced: If another controller has taken over.
        """
        return self._write.guarded(
            lease,
            lambda connection: claims.claim(
                connection, lease, trial_id, claim_id, host, self._policy
            ),
        )

    def beat(self, claim: Claim, worker: str, log: str = "", *, number: int = 0) -> None:
        """Say that a worker is still at a trial, and keep what it printed since the last beat.

        Raises:
            Fenced: If somebody else owns the trial now; nothing is written.
        """
        self._write.guarded(
            claim, lambda connection: logbook.append(connection, claim, worker, log, number)
        )

    def commit_unit(
        self, claim: Claim, result: UnitResult, *, worker: str = "", log: str = "", number: int = 0
    ) -> TrialState:
        """Make a unit's result durable and visible, once; the trial SUCCEEDS with its last unit.

        `log` is what `worker` printed since its last beat.

        Raises:
            Fenced: If somebody else owns the trial now; nothing is written.
            StoreError: If the unit is not the trial's, or comes before `quantize`.
        """

        def write(connection: Connection) -> TrialState:
            logbook.append(connection, claim, worker, log, number)
            return results.commit(connection, claim, result)

        return self._write.guarded(
            claim,
            write,
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
            lambda connection: endings.end(connection, claim, failure, log_path, self._policy),
            settled=lambda connection: endings.ended_before(connection, claim, failure),
        )

    def lose_worker(self, claim: Claim, failure: Failure, *, worker: str) -> TrialState:
        """Charge the loss of one of several workers; the attempt goes on with the others.

        Raises:
            Fenced: If somebody else owns the trial now; nothing is written.
        """
        return self._write.guarded(
            claim,
            lambda connection: endings.lose(connection, claim, failure, worker, self._policy),
            settled=lambda connection: endings.ended_before(connection, claim, failure, worker),
        )

    def prune(self, lease: Lease, trial_id: int, evidence: str) -> bool:
        """Give up a trial that racing has beaten; False if it is over already.

        Raises:
            Fenced: If another controller has taken over.
            StoreError: If the trial is a baseline.
        """
        return self._write.guarded(
            lease, lambda connection: endings.prune(connection, lease, trial_id, evidence)
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

    def reading(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a connection that cannot write, for the other modules of this folder."""
        return self._read(work)

    def writing(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which must be safe to repeat, in one write transaction, for the same."""
        return self._write.run(work)

    def close(self) -> None:
        """Let go of connections."""
        self._engines.dispose()

    def _read(self, work: Callable[[Connection], T]) -> T:
        with one_line(self.url), self._engines.read.begin() as connection:
            return work(connection)
