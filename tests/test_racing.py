"""When a trial is given up: against formulas written down here once more."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.racing import Race, has_collapsed, verdicts
from dllm_sweep.records import Score, TrialRow, TrialState

TASKS = frozenset({"a", "b", "c"})


def row(number, method="rtn", state=TrialState.RUNNING, model="m"):
    return TrialRow(
        id=number,
        key=f"{number:064d}",
        label=f"trial {number}",
        state=state,
        attempt=1,
        reason="",
        model=model,
        method=method,
        units=4,
        units_done=1,
        priority=0,
        estimated_s=1.0,
        ready_in_s=0.0,
    )


def score(trial, task, value, stderr=0.01, n=1000, higher=True):
    return Score(
        trial_id=trial, task=task, value=value, stderr=stderr, n=n, higher_is_better=higher
    )


def given_up(values, race=None, base=0.8, method="rtn", model="m"):
    """Ids given up when trial 2 has `values` on tasks a, b, ... and full precision `base`."""
    trials = [row(1, "fp", TrialState.SUCCEEDED), row(2, method, model=model)]
    scores = [score(1, task, base) for task in sorted(TASKS)]
    scores += [score(2, task, value) for task, value in zip("abc", values, strict=False)]
    return [verdict.trial_id for verdict in verdicts(trials, scores, TASKS, race or Race())]


def test_a_collapse_on_two_of_three_tasks_ends_a_trial():
    assert given_up([0.1, 0.1]) == [2]
    assert given_up([0.1, 0.7, 0.1]) == [2]


def test_a_collapse_on_one_task_never_does():
    assert given_up([0.1]) == []
    assert given_up([0.1, 0.7, 0.7]) == []
    assert given_up([0.1, 0.7], race=Race(needed=1)) == []


def test_a_score_above_the_threshold_is_never_a_collapse():
    assert given_up([0.41, 0.41, 0.41]) == []


def test_baselines_and_trials_that_are_over_are_left_alone():
    assert given_up([0.1, 0.1], method="fp") == []
    trials = [row(1, "fp", TrialState.SUCCEEDED), row(2, state=TrialState.SUCCEEDED)]
    scores = [score(t, task, v) for task in "ab" for t, v in ((1, 0.8), (2, 0.1))]
    assert verdicts(trials, scores, TASKS, Race()) == []


def test_without_the_models_own_baseline_nothing_is_judged():
    assert given_up([0.1, 0.1], model="another") == []


def test_scores_of_other_tasks_do_not_count():
    trials = [row(1, "fp", TrialState.SUCCEEDED), row(2)]
    scores = [score(t, task, v) for task in "xy" for t, v in ((1, 0.8), (2, 0.1))]
    assert verdicts(trials, scores, TASKS, Race()) == []


def test_scores_that_are_no_numbers_are_a_collapse():
    assert given_up([None, None]) == [2]


def test_a_task_on_which_full_precision_is_no_number_says_nothing():
    assert not has_collapsed(score(2, "a", 0.1), [score(1, "a", None)], Race())


def test_the_evidence_names_tasks_scores_and_confidence():
    trials = [row(1, "fp", TrialState.SUCCEEDED), row(2)]
    scores = [score(t, task, v) for task in "ab" for t, v in ((1, 0.8), (2, 0.1))]
    (verdict,) = verdicts(trials, scores, TASKS, Race())
    assert verdict.evidence == (
        "retains less than 50% of full precision on 2 tasks, 95% confident over 2 looks:"
        " a 0.1 (n = 1000) of 0.8 (n = 1000); b 0.1 (n = 1000) of 0.8 (n = 1000)"
    )


def test_no_item_right_of_few_is_not_taken_for_certain():
    """0 of 5 is not a collapse of 0.3; 0 of 500 is."""
    full = [score(1, "a", 0.3, 0.02, 500)]
    assert not has_collapsed(score(2, "a", 0.0, 0.0, 5), full, Race())
    assert has_collapsed(score(2, "a", 0.0, 0.0, 500), full, Race())


@pytest.mark.parametrize(("tasks", "needed", "looks"), [(3, 2, 2), (3, 3, 1), (4, 2, 3)])
def test_the_error_is_shared_out_over_the_looks(tasks, needed, looks):
    race = Race(tasks=tasks, needed=needed)
    assert race.looks == looks
    assert race.z == pytest.approx(NormalDist().inv_cdf(1 - 0.05 / looks))


@given(
    s=st.floats(0.01, 0.99),
    b=st.floats(0.05, 0.99),
    se_s=st.floats(0.02, 0.2),
    se_b=st.floats(0.02, 0.2),
    r=st.floats(0.1, 0.9),
)
def test_the_rule_is_the_upper_end_of_fiellers_interval(s, b, se_s, se_b, r):
    """The upper end u of the interval of s / b is the larger root of
    (s - u b)^2 = z^2 (se_s^2 + u^2 se_b^2), if the interval is bounded."""
    race = Race(retains=r)
    z = race.z
    square = b * b - z * z * se_b * se_b
    if square <= 1e-6:
        return
    half = s * b
    root = half * half - square * (s * s - z * z * se_s * se_s)
    upper = (half + math.sqrt(max(root, 0.0))) / square
    if abs(upper - r) < 1e-9:
        return
    many = 10**6  # so many items that the floor of the standard error does not show
    found = has_collapsed(score(2, "a", s, se_s, many), [score(1, "a", b, se_b, many)], race)
    assert found == (upper < r)


@given(s=st.floats(1.1, 1e4), b=st.floats(1.1, 1e4))
def test_where_lower_is_better_the_shares_turn_round(s, b):
    sure = [score(1, "a", b, 0.0, 10, higher=False)]
    assert has_collapsed(score(2, "a", s, 0.0, 10, higher=False), sure, Race()) == (b < 0.5 * s)
