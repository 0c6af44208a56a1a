"""A store in memory with the rules of `transitions.py`: for tests, and as the model of the others.

It keeps what the verbs need (states, units, digests, budgets), not what the views show.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from dllm_sweep.db.claims import refuse_illegal_retry
from dllm_sweep.db.memory_rows import MemorySweep, MemoryTrial, put
from dllm_sweep.db.transitions import (
    DEFAULT_POLICY,
    Actor,
    RetryPolicy,
    Standing,
    after,
    check,
    reason_text,
    sources,
)
from dllm_sweep.errors import Fenced, LeaseHeld, UnknownName
from dllm_sweep.records import (
    Claim,
    EndReason,
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


class MemoryStore:
    """A Store that ends with its process. Safe to use from several threads.

    Args:
        policy: Budgets of attempts.
        clock: Seconds since any fixed point; the store's only clock.
    """

    def __init__(
        self, policy: RetryPolicy = DEFAULT_POLICY, clock: Callable[[], float] = monotonic
    ) -> None:
        self._policy, self._clock = policy, clock
        self._sweeps: dict[str, MemorySweep] = {}
        self._trials: list[MemoryTrial] = []
        self._lock = threading.RLock()

    def plan_sweep(self, name: str, source: str, trials: Sequence[PlannedTrial]) -> SweepRow:
        """Create or extend the sweep `name`: trials that it has already are left as they are."""
        with self._lock:
            sweep = self._sweeps.pop(name, None) or MemorySweep(len(self._sweeps) + 1, name, source)
            self._sweeps[name] = sweep  # last in order: it was launched last
            sweep.source = source
            for trial in trials:
                if trial.spec.key not in sweep.trials:
                    self._add(sweep, trial)
            return self.sweep(name)

    def sweep(self, name: str | None) -> SweepRow:
        """The sweep of this name, or the one launched last."""
        found = self._find(name)
        return SweepRow(id=found.id, name=found.name, source=found.source, paused=found.paused)

    def trials(self, sweep_id: int) -> tuple[TrialRow, ...]:
        """All trials of a sweep, highest priority first, then in planning order."""
        chosen = [trial for trial in self._trials if trial.sweep.id == sweep_id]
        chosen.sort(key=lambda trial: (-trial.plan.priority, trial.id))
        return tuple(self._row(trial) for trial in chosen)

    def take_lease(
        self, sweep: str, holder: Holder, *, seconds: float, takeover: bool = False
    ) -> Lease:
        """Become the sweep's controller: epoch + 1; attempts of older epochs end as LOST."""
        with self._lock:
            found = self._find(sweep)
            left_s = found.lease_until_s - self._clock()
            other = found.holder
            if other is not None and other != holder and left_s > 0 and not takeover:
                raise LeaseHeld(sweep, other.host, other.pid, other.process_started_s, left_s)
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
        with self._held(lease) as sweep:
            self._requeue_running(sweep, EndReason.ABORTED)
            sweep.epoch += 1
            sweep.holder = None

    def claim(self, lease: Lease, trial_id: int, claim_id: str, host: HostInfo) -> Claim | None:
        """Take a PENDING trial for one attempt, or None if it cannot be taken (any more)."""
        with self._held(lease) as sweep:
            trial = self._trial(trial_id)
            if trial is None or trial.sweep is not sweep:
                return None
            if trial.state is TrialState.RUNNING and trial.claim_id == claim_id:
                return self._claim_of(trial)
            if (
                trial.state not in sources(TrialState.RUNNING, Actor.CONTROLLER)
                or sweep.paused
                or trial.ready_at_s > self._clock()
            ):
                return None
            self._move(trial, TrialState.RUNNING, Actor.CONTROLLER, "")
            trial.attempt, trial.claim_id = trial.attempt + 1, claim_id
            return self._claim_of(trial)

    def commit_unit(self, claim: Claim, result: UnitResult) -> TrialState:
        """Make a unit's result durable and visible, once; the trial SUCCEEDS with its last unit."""
        with self._lock:
            trial = self._owned(claim)
            key = result.unit.key
            mine = key in trial.done and trial.done[key][0] == claim.attempt
            if mine and trial.attempt == claim.attempt and trial.state is TrialState.SUCCEEDED:
                return trial.state
            self._fence(trial, claim)
            if not mine:
                put(trial, claim, result)
            if len(trial.done) == len(trial.units):
                self._end(trial, TrialState.SUCCEEDED, Actor.OWNER, EndReason.OK, "")
            return trial.state

    def end_attempt(
        self, claim: Claim, failure: Failure, *, log_path: str | None = None
    ) -> TrialState:
        """End an attempt without success; requeue the trial or fail it."""
        with self._lock:
            trial = self._owned(claim)
            if trial.attempt == claim.attempt and trial.ended.get(claim.attempt) == failure.reason:
                return trial.state
            self._fence(trial, claim)
            standing = after(failure.reason, failure.retryable, trial.standing, self._policy)
            trial.standing = standing
            trial.ready_at_s = self._clock() + standing.delay_s
            self._end(trial, standing.state, Actor.OWNER, failure.reason, reason_text(failure))
            return standing.state

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
        legal = sources(TrialState.CANCELLED, Actor.USER)
        chosen = [trial for trial in self._with_keys(sweep_id, keys) if trial.state in legal]
        for trial in chosen:
            self._end(
                trial,
                TrialState.CANCELLED,
                Actor.USER,
                EndReason.ABORTED,
                "cancelled by the user",
            )
        return len(chosen)

    def pause(self, sweep_id: int, paused: bool) -> None:
        """Stop or go on handing out claims."""
        next(sweep for sweep in self._sweeps.values() if sweep.id == sweep_id).paused = paused

    def close(self) -> None:
        """Nothing to let go of."""

    def _find(self, name: str | None) -> MemorySweep:
        if name is None and self._sweeps:
            return list(self._sweeps.values())[-1]
        if name is None or name not in self._sweeps:
            raise UnknownName("sweep", name or "", self._sweeps)
        return self._sweeps[name]

    def _add(self, sweep: MemorySweep, plan: PlannedTrial) -> None:
        state = TrialState.PENDING if plan.skip_reason is None else TrialState.SKIPPED
        check(None, state, Actor.PLANNER)
        trial = MemoryTrial(len(self._trials) + 1, sweep, plan, state, plan.skip_reason or "")
        sweep.trials[plan.spec.key] = trial
        self._trials.append(trial)

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[MemorySweep]:
        with self._lock:
            sweep = self._find(lease.sweep)
            if sweep.epoch != lease.epoch:
                raise Fenced(f"sweep {lease.sweep!r}: another controller has taken over")
            yield sweep

    def _trial(self, trial_id: int) -> MemoryTrial | None:
        return next((trial for trial in self._trials if trial.id == trial_id), None)

    def _owned(self, claim: Claim) -> MemoryTrial:
        trial = self._trial(claim.trial_id)
        if trial is None:
            raise Fenced(f"there is no trial {claim.trial_id}")
        return trial

    def _fence(self, trial: MemoryTrial, claim: Claim) -> None:
        mine = (TrialState.RUNNING, claim.attempt, claim.claim_id, claim.epoch)
        if (trial.state, trial.attempt, trial.claim_id, trial.sweep.epoch) != mine:
            raise Fenced(f"trial {claim.trial_key[:12]}: attempt {claim.attempt} is fenced off")

    def _move(self, trial: MemoryTrial, to: TrialState, by: Actor, reason: str) -> None:
        check(trial.state, to, by)
        trial.state, trial.reason = to, reason

    def _end(
        self, trial: MemoryTrial, to: TrialState, by: Actor, end: EndReason, reason: str
    ) -> None:
        if trial.state is TrialState.RUNNING:
            trial.ended[trial.attempt] = end
        self._move(trial, to, by, reason)

    def _requeue_running(self, sweep: MemorySweep, end: EndReason) -> None:
        for trial in sweep.trials.values():
            if trial.state is TrialState.RUNNING:
                self._end(trial, TrialState.PENDING, Actor.CONTROLLER, end, str(end))

    def _claim_of(self, trial: MemoryTrial) -> Claim:
        return Claim(
            trial_id=trial.id,
            trial_key=trial.plan.spec.key,
            attempt=trial.attempt,
            epoch=trial.sweep.epoch,
            claim_id=trial.claim_id,
            label=trial.plan.label,
            trial=trial.plan.spec,
            done=tuple(key for key in trial.units if key in trial.done),
            weights=trial.weights,
            batch_scale=trial.standing.batch_scale,
        )

    def _with_keys(self, sweep_id: int, keys: Sequence[str]) -> list[MemoryTrial]:
        return [
            trial
            for trial in self._trials
            if trial.sweep.id == sweep_id
            and (not keys or trial.plan.spec.key.startswith(tuple(keys)))
        ]

    def _row(self, trial: MemoryTrial) -> TrialRow:
        return TrialRow(
            id=trial.id,
            key=trial.plan.spec.key,
            label=trial.plan.label,
            state=trial.state,
            attempt=trial.attempt,
            reason=trial.reason,
            model=str(trial.plan.spec.model),
            method=trial.plan.spec.method,
            units=len(trial.units),
            units_done=len(trial.done),
            priority=trial.plan.priority,
            estimated_s=trial.plan.estimated_s,
            ready_in_s=trial.ready_at_s - self._clock(),
        )
