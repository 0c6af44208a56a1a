"""The state of the store in memory, and the steps that its verbs are made of."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from dllm_sweep.db.memory_rows import MemorySweep, MemoryTrial, copy_results
from dllm_sweep.db.reuse import reason_of
from dllm_sweep.db.transitions import (
    DEFAULT_POLICY,
    Actor,
    RetryPolicy,
    Standing,
    check,
    reason_text,
    taken_back,
)
from dllm_sweep.errors import Fenced, UnknownName
from dllm_sweep.records import (
    Claim,
    EndReason,
    Failure,
    Lease,
    PlannedTrial,
    TrialState,
    UnitTime,
)


class MemoryState:
    """Sweeps and trials behind one lock; `memory.MemoryStore` is the store on top of it.

    Args:
        policy: Budgets of attempts.
        clock: Seconds since any fixed point; the store's only clock.
    """

    def __init__(
        self, policy: RetryPolicy = DEFAULT_POLICY, clock: Callable[[], float] = monotonic
    ) -> None:
        self._policy, self._clock = policy, clock
        self._sweeps: dict[str, MemorySweep] = {}
        self._trials: dict[int, MemoryTrial] = {}
        self._succeeded: dict[str, MemoryTrial] = {}
        self._times: list[UnitTime] = []
        self._chunks = 0
        self._lock = threading.RLock()

    def _find(self, name: str | None) -> MemorySweep:
        if name is None and self._sweeps:
            return list(self._sweeps.values())[-1]
        if name is None or name not in self._sweeps:
            raise UnknownName("sweep", name or "", self._sweeps)
        return self._sweeps[name]

    def _add(self, sweep: MemorySweep, key: str, plan: PlannedTrial, *, reuse: bool) -> None:
        origin = self._succeeded.get(key) if reuse and plan.skip_reason is None else None
        state, reason = TrialState.PENDING, ""
        if plan.skip_reason is not None:
            state, reason = TrialState.SKIPPED, plan.skip_reason
        elif origin is not None:
            state, reason = TrialState.SUCCEEDED, reason_of(origin.sweep.name)
        check(None, state, Actor.PLANNER)
        trial = MemoryTrial(len(self._trials) + 1, sweep, key, plan, state, reason)
        if origin is not None:
            copy_results(trial, origin)
        sweep.trials[key] = self._trials[trial.id] = trial

    @contextmanager
    def _held(self, lease: Lease) -> Iterator[MemorySweep]:
        with self._lock:
            sweep = self._find(lease.sweep)
            if sweep.epoch != lease.epoch:
                raise Fenced(f"sweep {lease.sweep!r}: another controller has taken over")
            yield sweep

    def _owned(self, claim: Claim) -> MemoryTrial:
        trial = self._trials.get(claim.trial_id)
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
        if to is TrialState.SUCCEEDED:
            first = self._succeeded.setdefault(trial.key, trial)
            self._succeeded[trial.key] = min(first, trial, key=lambda some: some.id)

    def _end(
        self, trial: MemoryTrial, to: TrialState, by: Actor, end: EndReason, reason: str
    ) -> None:
        if trial.state is TrialState.RUNNING:
            trial.ended[trial.attempt] = end
        self._move(trial, to, by, reason)

    def _close(self, trial: MemoryTrial, failure: Failure, standing: Standing) -> None:
        trial.standing = standing
        trial.ready_at_s = self._clock() + standing.delay_s
        self._end(trial, standing.state, Actor.OWNER, failure.reason, reason_text(failure))

    def _requeue_running(self, sweep: MemorySweep, end: EndReason) -> None:
        for trial in sweep.trials.values():
            if trial.state is TrialState.RUNNING:
                self._end(trial, TrialState.PENDING, Actor.CONTROLLER, end, taken_back(end))

    def _claim_of(self, trial: MemoryTrial) -> Claim:
        return Claim(
            trial_id=trial.id,
            trial_key=trial.key,
            attempt=trial.attempt,
            epoch=trial.sweep.epoch,
            claim_id=trial.claim_id,
            label=trial.plan.label,
            trial=trial.plan.spec,
            done=tuple(key for key in trial.units if key in trial.done),
            units=tuple(unit for unit, _ in trial.units.values()),
            weights=trial.weights,
            batch_scale=trial.standing.batch_scale,
        )

    def _with_keys(self, sweep_id: int, keys: Sequence[str]) -> list[MemoryTrial]:
        return [
            trial
            for trial in self._trials.values()
            if trial.sweep.id == sweep_id and (not keys or trial.key.startswith(tuple(keys)))
        ]

    def _ordered(self, sweep_id: int) -> list[MemoryTrial]:
        chosen = self._with_keys(sweep_id, ())
        return sorted(chosen, key=lambda trial: (-trial.plan.priority, trial.id))
