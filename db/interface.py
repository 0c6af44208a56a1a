"""What the rest of the system asks of a store. Every write is one guarded transaction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class Store(Protocol):
    """The truth about all sweeps. Times are the database's; nothing reads a worker's clock.

    Every method may raise StoreError; those that write under a lease or claim raise Fenced when
    somebody else has taken over.
    """

    def plan_sweep(
        self, name: str, source: str, trials: Sequence[PlannedTrial], *, reuse: bool = True
    ) -> SweepRow:
        """Create or extend the sweep `name`: trials that it has already are left as they are.

        With `reuse`, a new trial that has SUCCEEDED in another sweep of this store is created
        SUCCEEDED with a copy of its results; its reason names that sweep.
        """

    def sweep(self, name: str | None) -> SweepRow:
        """The sweep of this name, or the one launched last.

        Raises:
            UnknownName: If there is none.
        """

    def trials(self, sweep_id: int) -> tuple[TrialRow, ...]:
        """All trials of a sweep, highest priority first, then in planning order."""

    def units(self, sweep_id: int) -> tuple[UnitStanding, ...]:
        """All units of a sweep's PENDING and RUNNING trials, in the order in which they run."""

    def unit_times(self) -> tuple[UnitTime, ...]:
        """How long the newest committed units of each kind took in all sweeps, oldest first."""

    def scores(self, sweep_id: int) -> tuple[Score, ...]:
        """The primary scores of all tasks that are wholly committed."""

    def logs(self, trial_id: int, *, after: int = 0) -> tuple[LogChunk, ...]:
        """What a trial's workers printed, oldest first, from the chunk after number `after` on."""

    def take_lease(
        self,
        sweep: str,
        holder: Holder,
        *,
        seconds: float,
        takeover: bool = False,
        dead: Holder | None = None,
    ) -> Lease:
        """Become the sweep's controller: epoch + 1; attempts of older epochs end as LOST and
        their trials go back to PENDING.

        The lease of a holder that is known to be `dead` is taken at once; of several that know it,
        the first gets it.

        Raises:
            LeaseHeld: If another holder's lease has not run out and `takeover` is False.
        """

    def renew_lease(self, lease: Lease, *, seconds: float) -> None:
        """Extend the lease from now."""

    def release_lease(self, lease: Lease) -> None:
        """Give the lease back; running attempts of its epoch end as ABORTED, their trials go
        back to PENDING."""

    def claim(self, lease: Lease, trial_id: int, claim_id: str, host: HostInfo) -> Claim | None:
        """Take a PENDING trial for one attempt, or None if it cannot be taken (any more).

        Safe to repeat with the same `claim_id`.
        """

    def beat(self, claim: Claim, worker: str, log: str = "", *, number: int = 0) -> None:
        """Say that a worker is still at a trial, and hand over what it printed since the last beat.

        `number` counts the worker's pieces of log under this claim from 1: a piece that is handed
        over again under its number is kept once. Of an attempt's log the beginning and the newest
        are kept, 256 KiB in all; a line says what was dropped between them.

        Raises:
            Fenced: If somebody else owns the trial now: the worker stops at once.
        """

    def commit_unit(
        self, claim: Claim, result: UnitResult, *, worker: str = "", log: str = "", number: int = 0
    ) -> TrialState:
        """Make a unit's result durable and visible, once; the trial SUCCEEDS with its last unit.

        `log` is what the worker printed since its last beat, kept in the same transaction; it is
        numbered as in `beat`.

        Several workers may hold one claim, each at a unit of its own; the first commit of a unit
        stands. The scores of a task that is cut into shards are merged by the commit of its last
        shard. Safe to repeat: a unit that this attempt has committed already is left as it is. A
        `quantize` result whose weights differ from those that older units were measured on
        supersedes those units; what is then still handed in as measured on the old weights
        (`UnitResult.weights_sha256`) is Fenced.
        """

    def end_attempt(
        self, claim: Claim, failure: Failure, *, log_path: str | None = None
    ) -> TrialState:
        """End an attempt without success; requeue the trial or fail it by the failure's reason
        and the budgets of attempts."""

    def lose_worker(self, claim: Claim, failure: Failure, *, worker: str) -> TrialState:
        """Charge the loss of one of several workers of a trial; the attempt goes on with the others
        unless the budget of losses is used up.

        `worker` tells the lost process from the attempt's others: its loss is charged once,
        however often it is said.
        """

    def prune(self, lease: Lease, trial_id: int, evidence: str) -> bool:
        """Give up a PENDING or RUNNING trial that racing has beaten; False if it is over already.

        `evidence` says what was seen and stays with the trial as its reason.

        Raises:
            StoreError: If the trial is a baseline: those are never pruned.
        """

    def retry(
        self,
        sweep_id: int,
        *,
        states: Sequence[TrialState],
        reasons: Sequence[str] = (),
        keys: Sequence[str] = (),
    ) -> int:
        """Put trials in one of `states` back to PENDING with fresh budgets; returns how many.

        `reasons` keeps only those whose last attempt ended so, `keys` only those whose key
        starts so.
        """

    def cancel(self, sweep_id: int, *, keys: Sequence[str] = ()) -> int:
        """Cancel PENDING and RUNNING trials; a running attempt is fenced off at its next commit."""

    def pause(self, sweep_id: int, paused: bool) -> None:
        """Stop or go on handing out claims."""

    def close(self) -> None:
        """Let go of connections."""
