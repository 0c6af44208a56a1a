"""The state machine, exhaustively and with random histories."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.db.transitions import (
    CONSEQUENCES,
    DEFAULT_POLICY,
    TRANSITIONS,
    Actor,
    Consequence,
    Standing,
    after,
    after_loss,
    backoff,
    check,
    sources,
    waits_s,
)
from dllm_sweep.errors import StoreError
from dllm_sweep.records import EndReason, TrialState

ENDS = sorted(CONSEQUENCES)
OVER = (TrialState.SUCCEEDED, TrialState.FAILED, TrialState.PRUNED, TrialState.CANCELLED)


def test_every_move_is_either_in_the_table_or_refused():
    moves = list(product([None, *TrialState], TrialState, Actor))
    refused = 0
    for start, to, by in moves:
        if (start, to, by) in TRANSITIONS:
            check(start, to, by)
            continue
        with pytest.raises(StoreError, match="cannot go from"):
            check(start, to, by)
        refused += 1
    assert refused == len(moves) - len(TRANSITIONS)


def test_the_sources_of_a_state_are_those_of_the_table():
    for to, by in product(TrialState, Actor):
        expected = {start for start, end, actor in TRANSITIONS if (end, actor) == (to, by)}
        assert set(sources(to, by)) == expected - {None}


def test_only_the_user_moves_a_trial_that_is_over():
    movers = {by for start, _, by in TRANSITIONS if start in OVER}
    assert movers == {Actor.USER}


def test_nothing_leaves_succeeded_or_skipped():
    starts = {start for start, _, _ in TRANSITIONS}
    assert not starts & {TrialState.SUCCEEDED, TrialState.SKIPPED}


def test_every_state_can_be_reached_and_every_reason_has_a_consequence():
    assert {to for _, to, _ in TRANSITIONS} == set(TrialState)
    assert set(CONSEQUENCES) == set(EndReason) - {EndReason.OK}


def _tries(reason: EndReason, *, retryable: bool = True, at_most: int = 50) -> int:
    standing, tries = Standing(), 0
    while standing.state is TrialState.PENDING and tries < at_most:
        standing, tries = after(reason, retryable, standing, DEFAULT_POLICY), tries + 1
    return tries


@pytest.mark.parametrize(
    ("reason", "tries"),
    [
        (EndReason.ERROR, 3),
        (EndReason.TIMEOUT, 3),
        (EndReason.HOST_OOM, 3),
        (EndReason.GPU_OOM, 7),
        (EndReason.LOST, 21),
        (EndReason.PREEMPTED, 50),
        (EndReason.ABORTED, 50),
        (EndReason.FENCED, 50),
    ],
)
def test_a_reason_is_tried_as_often_as_its_budget_allows(reason, tries):
    assert _tries(reason) == tries


def test_an_error_that_stays_is_tried_once():
    assert _tries(EndReason.ERROR, retryable=False) == 1


def test_pauses_double_up_to_a_quarter_of_an_hour():
    pauses = [backoff(number, DEFAULT_POLICY) for number in range(1, 8)]
    assert pauses == [30, 60, 120, 240, 480, 900, 900]
    assert backoff(10**6, DEFAULT_POLICY) == 900


def test_only_planning_makes_a_trial_and_only_racing_prunes_one():
    assert {by for start, _, by in TRANSITIONS if start is None} == {Actor.PLANNER}
    pruned = {(start, by) for start, to, by in TRANSITIONS if to is TrialState.PRUNED}
    assert pruned == {
        (TrialState.PENDING, Actor.CONTROLLER),
        (TrialState.RUNNING, Actor.CONTROLLER),
    }


@pytest.mark.parametrize("reason", ENDS)
def test_a_lost_worker_is_charged_to_losses_or_to_nothing(reason):
    standing, told = Standing(failures=1, batch_scale=0.5), 0
    while told <= DEFAULT_POLICY.max_lost and standing.state is not TrialState.FAILED:
        standing, told = after_loss(reason, standing, DEFAULT_POLICY), told + 1
    free = CONSEQUENCES[reason] is Consequence.REQUEUE
    assert standing == Standing(
        state=TrialState.RUNNING if free else TrialState.FAILED,
        failures=1,
        losses=0 if free else DEFAULT_POLICY.max_lost + 1,
        batch_scale=0.5,
    )


@given(st.floats(0, 1e10), st.floats(0, 1e10))
def test_no_pause_is_longer_than_the_longest_whatever_the_clock_did(not_before_s, now_s):
    left_s = waits_s(not_before_s, now_s, DEFAULT_POLICY)
    assert left_s <= DEFAULT_POLICY.backoff_cap_s
    assert left_s <= 0 or left_s == not_before_s - now_s


@given(st.lists(st.tuples(st.sampled_from(ENDS), st.booleans()), max_size=60))
def test_budgets_only_grow_and_batches_only_shrink(history):
    standing = Standing()
    for reason, retryable in history:
        new = after(reason, retryable, standing, DEFAULT_POLICY)
        assert new.state in (TrialState.PENDING, TrialState.FAILED)
        assert new.failures >= standing.failures
        assert new.losses >= standing.losses
        assert DEFAULT_POLICY.smallest_batch_scale <= new.batch_scale <= standing.batch_scale
        assert 0 <= new.delay_s <= DEFAULT_POLICY.backoff_cap_s
        if new.state is TrialState.FAILED:
            return
        assert new.failures <= DEFAULT_POLICY.max_failures
        assert new.losses <= DEFAULT_POLICY.max_lost
        standing = new
