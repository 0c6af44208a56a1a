"""The life of a trial as data: which moves are legal, by whom, and what an attempt's end means.

Everything here is pure; the stores ask these tables and functions and decide nothing themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from dllm_sweep.errors import StoreError
from dllm_sweep.records import EndReason, Failure, TrialState


class Actor(StrEnum):
    """Who moves a trial from one state to another."""

    PLANNER = "planner"
    """Planning, which creates trials."""
    CONTROLLER = "controller"
    """The holder of the sweep's lease."""
    OWNER = "owner"
    """The holder of the trial's claim, or the controller in its name."""
    USER = "user"
    """A person, by a verb of the command line."""


_P, _R = TrialState.PENDING, TrialState.RUNNING
_ENDED_BADLY = (TrialState.FAILED, TrialState.PRUNED, TrialState.CANCELLED)

TRANSITIONS: frozenset[tuple[TrialState | None, TrialState, Actor]] = frozenset(
    {
        (None, _P, Actor.PLANNER),
        (None, TrialState.SKIPPED, Actor.PLANNER),
        (None, TrialState.SUCCEEDED, Actor.PLANNER),
        (_P, _R, Actor.CONTROLLER),
        (_R, _P, Actor.CONTROLLER),
        (_P, TrialState.PRUNED, Actor.CONTROLLER),
        (_R, TrialState.PRUNED, Actor.CONTROLLER),
        (_R, _P, Actor.OWNER),
        (_R, _R, Actor.OWNER),
        (_R, TrialState.SUCCEEDED, Actor.OWNER),
        (_R, TrialState.FAILED, Actor.OWNER),
        (_P, TrialState.CANCELLED, Actor.USER),
        (_R, TrialState.CANCELLED, Actor.USER),
        *((state, _P, Actor.USER) for state in _ENDED_BADLY),
    }
)
"""Every legal move (from, to, by whom).

From None is the trial's creation: SUCCEEDED if its results are another sweep's. From RUNNING to
RUNNING an attempt goes on after one of its workers was lost.
"""


def sources(to: TrialState, by: Actor) -> tuple[TrialState, ...]:
    """The states from which `by` may move a trial to `to`, sorted by name."""
    return tuple(sorted(a for a, b, actor in TRANSITIONS if a and b == to and actor == by))


def check(start: TrialState | None, to: TrialState, by: Actor) -> None:
    """Refuse a move that is not in `TRANSITIONS`.

    Raises:
        StoreError: If the move is not legal.
    """
    if (start, to, by) not in TRANSITIONS:
        raise StoreError(f"a trial cannot go from {start or 'nothing'} to {to} by the {by}")


class Consequence(StrEnum):
    """What the end of an attempt means for its trial."""

    REQUEUE = "requeue"
    """Try again at once; no budget is charged."""
    ERROR = "error"
    """Fail at once, or charge the budget of failures if the error says it may pass."""
    COUNT_FAILURE = "count_failure"
    """Try again after a pause until the budget of failures is used up."""
    COUNT_LOSS = "count_loss"
    """Try again at once until the budget of losses is used up."""
    HALVE_BATCH = "halve_batch"
    """Try again at once with half the batch until it cannot be made smaller."""


CONSEQUENCES: dict[EndReason, Consequence] = {
    EndReason.ERROR: Consequence.ERROR,
    EndReason.GPU_OOM: Consequence.HALVE_BATCH,
    EndReason.HOST_OOM: Consequence.COUNT_FAILURE,
    EndReason.TIMEOUT: Consequence.COUNT_FAILURE,
    EndReason.LOST: Consequence.COUNT_LOSS,
    EndReason.PREEMPTED: Consequence.REQUEUE,
    EndReason.ABORTED: Consequence.REQUEUE,
    EndReason.FENCED: Consequence.REQUEUE,
}
"""What each reason means. OK is not here: a trial succeeds by its last commit."""


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Budgets of attempts.

    Attributes:
        max_failures: Tries again after errors that may pass.
        max_lost: Tries again after losses of the machine.
        backoff_s: Pause in seconds before the first try again; it doubles with each.
        backoff_cap_s: Longest pause in seconds.
        smallest_batch_scale: The batch is not made smaller than this share of it.
    """

    max_failures: int = 2
    max_lost: int = 20
    backoff_s: float = 30.0
    backoff_cap_s: float = 900.0
    smallest_batch_scale: float = 1 / 64


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a trial has used of its budgets, and where that leaves it.

    Attributes:
        state: PENDING if it is tried again, RUNNING if the attempt goes on, FAILED if neither.
        failures: Failures charged so far.
        losses: Losses charged so far.
        batch_scale: Factor on batch sizes for the next attempt.
        delay_s: Seconds until the next attempt may start.
    """

    state: TrialState = TrialState.PENDING
    failures: int = 0
    losses: int = 0
    batch_scale: float = 1.0
    delay_s: float = 0.0


DEFAULT_POLICY = RetryPolicy()


def after(reason: EndReason, retryable: bool, now: Standing, policy: RetryPolicy) -> Standing:
    """Where a trial stands after an attempt ended for `reason`.

    Args:
        reason: Why the attempt ended; not OK.
        retryable: Whether an ERROR may pass when tried again; other reasons do not look at it.
        now: What had been used before; its `state` and `delay_s` are not looked at.
        policy: The budgets.

    Raises:
        StoreError: If the reason is OK: an attempt succeeds by committing the last unit.
    """
    now = replace(now, state=TrialState.PENDING, delay_s=0.0)
    match CONSEQUENCES.get(reason):
        case Consequence.REQUEUE:
            return now
        case Consequence.ERROR if not retryable:
            return replace(now, state=TrialState.FAILED)
        case Consequence.ERROR | Consequence.COUNT_FAILURE:
            return _charge_failure(now, policy)
        case Consequence.COUNT_LOSS:
            losses = now.losses + 1
            return replace(now, losses=losses, state=_left(losses <= policy.max_lost, _P))
        case Consequence.HALVE_BATCH:
            half = now.batch_scale / 2
            if half < policy.smallest_batch_scale:
                return replace(now, state=TrialState.FAILED)
            return replace(now, batch_scale=half)
        case None:
            raise StoreError(f"an attempt cannot end as {reason} without its last unit")


def after_loss(reason: EndReason, now: Standing, policy: RetryPolicy) -> Standing:
    """Where a trial stands after one of an attempt's workers was lost while others go on.

    Args:
        reason: How it was lost; what charges nothing at an attempt's end charges nothing here.
        now: What had been used before; its `state` and `delay_s` are not looked at.
        policy: The budgets; whatever it was, a lost worker is charged to that of losses.

    Raises:
        StoreError: If the reason is OK: that is no loss.
    """
    now = replace(now, state=TrialState.RUNNING, delay_s=0.0)
    match CONSEQUENCES.get(reason):
        case None:
            raise StoreError(f"a worker cannot be lost as {reason}")
        case Consequence.REQUEUE:
            return now
    losses = now.losses + 1
    return replace(now, losses=losses, state=_left(losses <= policy.max_lost, TrialState.RUNNING))


def backoff(failures: int, policy: RetryPolicy) -> float:
    """Seconds to wait after the failure of this number, from 1."""
    # The exponent is bounded because 2.0 ** 1024 is an OverflowError.
    doubled = policy.backoff_s * 2.0 ** min(failures - 1, 64)
    return min(doubled, policy.backoff_cap_s)


def waits_s(not_before_s: float, now_s: float, policy: RetryPolicy) -> float:
    """Seconds until a trial that waits until `not_before_s` may be claimed; 0 or less if now.

    No pause is longer than the longest: a time that is farther away was written before the clock
    was set back.
    """
    left_s = not_before_s - now_s
    return left_s if left_s <= policy.backoff_cap_s else 0.0


def reason_text(failure: Failure) -> str:
    """One line that says why an attempt failed, for the trial's row."""
    message = failure.message.strip().splitlines()
    first = message[0] if message else "no message"
    return f"{failure.reason}: {failure.error_type}: {first} (in unit {failure.unit})"


def taken_back(end: EndReason) -> str:
    """One line that says why a running trial was put back, for its row."""
    gone = end is EndReason.LOST
    why = "the controller before this one is gone" if gone else "the controller was stopped"
    return f"{end}: {why}"


def loss_text(failure: Failure) -> str:
    """One line that says that an attempt has lost one of its workers, for the trial's row."""
    return f"{reason_text(failure)}; the attempt goes on with its other workers"


def _charge_failure(now: Standing, policy: RetryPolicy) -> Standing:
    failures = now.failures + 1
    if failures > policy.max_failures:
        return replace(now, failures=failures, state=TrialState.FAILED)
    return replace(now, failures=failures, delay_s=backoff(failures, policy))


def _left(budget_left: bool, goes_on: TrialState) -> TrialState:
    return goes_on if budget_left else TrialState.FAILED
