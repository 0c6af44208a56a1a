"""A store in memory with the rules of `transitions.py`: for tests, and as the model of the others.

It keeps what the verbs need (states, units, digests, budgets), not what the views show.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from dllm_sweep.db import memory_board
from dllm_sweep.db.claims import refuse_illegal_retry
from dllm_sweep.db.endings import refuse_pruning
from dllm_sweep.db.memory_rows import MemorySweep, MemoryTrial, put
from dllm_sweep.db.memory_state import MemoryState
from dllm_sweep.db.planning import planned_units
from dllm_sweep.db.transitions import (
    Actor,
    Standing,
    after,
    after_loss,
    loss_text,
    sources,
    waits_s,
)
from dllm_sweep.errors import LeaseHeld
from dllm_sweep.records import (
    Claim,
    EndReason,
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


class MemoryStore(MemoryState):
    """A Store that ends with its process. Safe to use from several threads.

    Args:
        policy: Budgets of attempts.
        clock: Seconds since any fixed point; the store's only clock.
    """

    def plan_sweep(
        self, name: str, source: str, trials: Sequence[PlannedTrial], *, reuse: bool = True
    ) -> SweepRow:
        """Create or extend the sweep `name`: trials that it has already are left as they are."""
        with self._lock:
            new = {trial.spec.key: trial for trial in trials}
            known = self._sweeps[name].trials if name in self._sweeps else {}
            for key, trial in new.items():
                if key not in known and trial.skip_reason is None:
                    planned_units(trial)
            sweep = self._sweeps.pop(name, None) or MemorySweep(len(self._sweeps) + 1, name, source)
            self._sweeps[name] = sweep  # last in order: it was launched last
            sweep.source = source
            for key, trial in new.items():
                if key not in sweep.trials:
                    self._add(sweep, key, trial, reuse=reuse)
                else:  # equal data elsewhere are the same trial
                    kept = sweep.trials[key]
                    kept.plan = dataclasses.replace(kept.plan, spec=trial.spec)
            return self.sweep(name)

    def sweep(self, name: str | None) -> SweepRow:
        """The sweep of this name, or the one launched last."""
        found = self._find(name)
        reused = sum(trial.reused for trial in found.trials.values())
        return SweepRow(
            id=found.id, name=found.name, source=found.source, paused=found.paused, reused=reused
        )

    def trials(self, sweep_id: int) -> tuple[TrialRow, ...]:
        """All trials of a sweep, highest priority first, then in planning order."""
        now_s = self._clock()
        with self._lock:
            return tuple(
                memory_board.trial_row(trial, now_s, self._policy)
                for trial in self._ordered(sweep_id)
            )

    def units(self, sweep_id: int) -> tuple[UnitStanding, ...]:
        """All units of a sweep's PENDING and RUNNING trials, in the order in which they run."""
        with self._lock:
            return memory_board.units(self._ordered(sweep_id))

    def unit_times(self) -> tuple[UnitTime, ...]:
        """How long the newest committed units of each kind took in all sweeps, oldest first."""
        with self._lock:
            return memory_board.newest(self._times)

    def scores(self, sweep_id: int) -> tuple[Score, ...]:
        """The primary scores of all tasks that are wholly committed."""
        with self._lock:
            return memory_board.scores(self._with_keys(sweep_id, ()))

    def logs(self, trial_id: int, *, after: int = 0) -> tuple[LogChunk, ...]:
        """What a trial's workers printed, oldest first, from the chunk after number `after` on."""
        trial = self._trials.get(trial_id)
        return () if trial is None else trial.log.read(after)

    def take_lease(
        self,
        sweep: str,
        holder: Holder,
        *,
        seconds: float,
        takeover: bool = False,
        dead: Holder | None = None,
    ) -> Lease:
        """Become the sweep's controller: epoch + 1; attempts of older epochs end as LOST."""
        with self._lock:
            found = self._find(sweep)
            left_s = found.lease_until_s - self._clock()
            other = found.holder
            free = takeover or left_s <= 0 or other in (None, holder, dead)
            if other is not None and not free:
                who = (other.host, other.pid, other.process_started_s)
                raise LeaseHeld(sweep, *who, left_s, found.lease_until_s)
            found.epoch += 1
            found.holder, found.lease_until_s = holder, self._clock() + seconds
            self._requeue_running(found, EndReason.LOST)
            return Lease(sweep_id=found.id, sweep=sweep, epoch=found.epoch, holder=holder)

    def renew_lease(self, lease: Lease, *, seconds: float) -> None:
        """Extend the lease from now."""
        with self._held(lease) as sweep:
            sweep.lease_until_s = self._clock() + seconds

    def release_lease(self, lease: Lease) -> None:
        """Give the lease back; running attempts end as ABORTED, their trials go to PENDING."""
        with self._lock:
            found = self._find(lease.sweep)
            if found.epoch == lease.epoch + 1 and found.holder is None:
                return
        with self._held(lease) as sweep:
            self._requeue_running(sweep, EndReason.ABORTED)
            sweep.epoch += 1
            sweep.holder = None

    def claim(self, lease: Lease, trial_id: int, claim_id: str, host: HostInfo) -> Claim | None:
        """Take a PENDING trial for one attempt, or None if it cannot be taken (any more)."""
        with self._held(lease) as sweep:
            trial = self._trials.get(trial_id)
            if trial is None or trial.sweep is not sweep:
                return None
            if trial.state is TrialState.RUNNING and trial.claim_id == claim_id:
                return self._claim_of(trial)
            if (
                trial.state not in sources(TrialState.RUNNING, Actor.CONTROLLER)
                or sweep.paused
                or waits_s(trial.ready_at_s, self._clock(), self._policy) > 0
            ):
                return None
            self._move(trial, TrialState.RUNNING, Actor.CONTROLLER, "")
            trial.attempt, trial.claim_id = trial.attempt + 1, claim_id
            return self._claim_of(trial)

    def commit_unit(
        self, claim: Claim, result: UnitResult, *, worker: str = "", log: str = "", number: int = 0
    ) -> TrialState:
        """Make a unit's result durable and visible, once; the trial SUCCEEDS with its last unit."""
        with self._lock:
            trial = self._owned(claim)
            key = result.unit.key
            mine = key in trial.done and trial.done[key][0] == claim.attempt
            if mine and trial.attempt == claim.attempt and trial.state is TrialState.SUCCEEDED:
                return trial.state
            self._fence(trial, claim)
            # `put` tells a repeated `quantize` from one that gave other weights.
            repeated = mine and result.unit.kind != "quantize"
            kept = None if repeated else put(trial, claim, result)
            if kept is not None:
                self._times.append(memory_board.unit_time(trial, kept))
            self._keep_log(trial, claim, worker, log, number)
            if len(trial.done) == len(trial.units):
                self._end(trial, TrialState.SUCCEEDED, Actor.OWNER, EndReason.OK, "")
            return trial.state

    def beat(self, claim: Claim, worker: str, log: str = "", *, number: int = 0) -> None:
        """Say that a worker is still at a trial, and keep what it printed since the last beat."""
        with self._lock:
            trial = self._owned(claim)
            self._fence(trial, claim)
            self._keep_log(trial, claim, worker, log, number)

    def _keep_log(
        self, trial: MemoryTrial, claim: Claim, worker: str, log: str, number: int
    ) -> None:
        if not log:
            return
        self._chunks += 1
        chunk = LogChunk(
            id=self._chunks,
            trial_id=trial.id,
            attempt=claim.attempt,
            worker=worker,
            at_s=self._clock(),
            text=log,
        )
        trial.log.add(chunk, number)

    def end_attempt(
        self, claim: Claim, failure: Failure, *, log_path: str | None = None
    ) -> TrialState:
        """End an attempt without success; requeue the trial or fail it."""
        with self._lock:
            trial = self._owned(claim)
            charged = (claim.attempt, "") in trial.lost
            over = trial.ended.get(claim.attempt) == failure.reason
            if trial.attempt == claim.attempt and charged and over:
                return trial.state
            self._fence(trial, claim)
            standing = after(failure.reason, failure.retryable, trial.standing, self._policy)
            trial.lost.add((claim.attempt, ""))
            self._close(trial, failure, standing)
            return standing.state

    def lose_worker(self, claim: Claim, failure: Failure, *, worker: str) -> TrialState:
        """Charge the loss of one of several workers; the attempt goes on with the others."""
        with self._lock:
            trial = self._owned(claim)
            charged = (claim.attempt, worker) in trial.lost
            over = trial.ended.get(claim.attempt) == failure.reason
            if trial.attempt == claim.attempt and charged and over:
                return trial.state
            self._fence(trial, claim)
            if charged:
                return trial.state
            standing = after_loss(failure.reason, trial.standing, self._policy)
            trial.lost.add((claim.attempt, worker))
            if standing.state is TrialState.RUNNING:
                self._move(trial, standing.state, Actor.OWNER, loss_text(failure))
                trial.standing = standing
            else:
                self._close(trial, failure, standing)
            return standing.state

    def prune(self, lease: Lease, trial_id: int, evidence: str) -> bool:
        """Give up a trial that racing has beaten; False if it is over already."""
        with self._held(lease) as sweep:
            trial = self._trials.get(trial_id)
            if trial is None or trial.sweep is not sweep:
                return False
            refuse_pruning(trial.plan.spec.is_baseline, trial.plan.label)
            if trial.state not in sources(TrialState.PRUNED, Actor.CONTROLLER):
                return trial.state is TrialState.PRUNED and trial.reason == evidence
            self._end(trial, TrialState.PRUNED, Actor.CONTROLLER, EndReason.ABORTED, evidence)
            return True

    def retry(
        self,
        sweep_id: int,
        *,
        states: Sequence[TrialState],
        reasons: Sequence[str] = (),
        keys: Sequence[str] = (),
    ) -> int:
        """Put trials in one of `states` back to PENDING with fresh budgets; returns how many."""
        refuse_illegal_retry(states)
        with self._lock:
            chosen = [
                trial
                for trial in self._with_keys(sweep_id, keys)
                if trial.state in states
                and (not reasons or trial.ended.get(trial.attempt) in tuple(reasons))
            ]
            for trial in chosen:
                self._move(trial, TrialState.PENDING, Actor.USER, "")
                trial.standing, trial.ready_at_s = Standing(), 0.0
            return len(chosen)

    def cancel(self, sweep_id: int, *, keys: Sequence[str] = ()) -> int:
        """Cancel PENDING and RUNNING trials; a running attempt is fenced off at its next commit."""
        legal, why = sources(TrialState.CANCELLED, Actor.USER), "cancelled by the user"
        with self._lock:
            chosen = [trial for trial in self._with_keys(sweep_id, keys) if trial.state in legal]
            for trial in chosen:
                self._end(trial, TrialState.CANCELLED, Actor.USER, EndReason.ABORTED, why)
            return len(chosen)

    def pause(self, sweep_id: int, paused: bool) -> None:
        """Stop or go on handing out claims."""
        next(sweep for sweep in self._sweeps.values() if sweep.id == sweep_id).paused = paused

    def close(self) -> None:
        """Nothing to let go of."""
