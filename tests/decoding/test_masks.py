import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.decoding.masks import (
    ESTIMATORS,
    answer_masks,
    expected_coefficient,
    mask_draws,
)
from dllm_sweep.errors import UnknownName

few = st.integers(1, 12)
estimators = st.sampled_from(ESTIMATORS)


def hidden_in_all(masks):
    return math.fsum(coefficient * len(mask) for mask, coefficient in masks)


@given(length=few, draws=st.integers(1, 64), seed=st.integers(0, 5), estimator=estimators)
def test_masks_lie_in_the_answer_and_are_sorted(length, draws, seed, estimator):
    for mask in answer_masks(length, draws=draws, seed=seed, item="x", estimator=estimator):
        assert mask
        assert list(mask) == sorted(set(mask))
        assert set(mask) <= set(range(length))


@given(length=few, draws=st.integers(1, 64), seed=st.integers(0, 5))
def test_llada_s_masks_count_every_token_once(length, draws, seed):
    """Whatever is drawn: an answer of equally likely tokens is estimated without noise."""
    masks = answer_masks(length, draws=draws, seed=seed, item="x")
    assert math.isclose(hidden_in_all(masks.items()), length)


@given(length=few, estimator=estimators)
def test_enough_draws_list_every_mask_and_count_every_token_once(length, estimator):
    masks = answer_masks(length, draws=2**length - 1, seed=0, item="x", estimator=estimator)
    assert len(masks) == 2**length - 1
    assert math.isclose(hidden_in_all(masks.items()), length)


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 2), (2, 2), (3, 7), (1, 12), (12, 12)])
def test_expected_coefficients_are_the_integrals_of_the_definitions(count, length):
    steps, epsilon = 20_000, 1e-3
    times = [(step + 0.5) / steps for step in range(steps)]
    shares = [(1 - epsilon) * time + epsilon for time in times]
    mean = sum(p ** (count - 1) * (1 - p) ** (length - count) for p in shares) / steps
    assert math.isclose(expected_coefficient(count, length, "dream"), mean, rel_tol=1e-5)
    probability = 1 / length / math.comb(length, count)
    found = expected_coefficient(count, length, "llada")
    assert math.isclose(found, probability * length / count)


@given(length=few, draws=st.integers(1, 64), estimator=estimators)
def test_draws_are_as_many_as_asked_and_join_to_the_masks(length, draws, estimator):
    options = {"draws": draws, "seed": 1, "item": "x", "estimator": estimator}
    one_by_one = mask_draws(length, **options)
    joined = Counter()
    for mask, coefficient in one_by_one:
        joined[mask] += coefficient
    if 2**length - 1 > draws:
        joined.pop((), None)
        assert len(one_by_one) == draws
    assert joined == pytest.approx(answer_masks(length, **options))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize(("length", "draws"), [(6, 4), (5, 16), (9, 32), (7, 10)])
def test_coefficients_are_right_on_average(length, draws, estimator):
    """The authors' rounding of LLaDA's counts is biased where it hits halves; ours has none."""
    items = 3000
    sums, squares = Counter(), Counter()
    for item in range(items):
        of_count = Counter()
        options = {"draws": draws, "seed": 1, "item": str(item), "estimator": estimator}
        for mask, coefficient in answer_masks(length, **options).items():
            of_count[len(mask)] += coefficient
        for count, value in of_count.items():
            sums[count] += value / items
            squares[count] += value**2 / items
    for count in range(1, length + 1):
        expected = math.comb(length, count) * expected_coefficient(count, length, estimator)
        error = math.sqrt(max(squares[count] - sums[count] ** 2, 1e-6) / items)
        assert abs(sums[count] - expected) < 4.5 * error


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_position_is_hidden_equally_often(estimator):
    items, length = 2000, 8
    hidden = Counter()
    for item in range(items):
        options = {"draws": 8, "seed": 0, "item": str(item), "estimator": estimator}
        for mask, _ in mask_draws(length, **options):
            hidden.update(mask)
    shares = [hidden[place] / sum(hidden.values()) for place in range(length)]
    assert shares == pytest.approx([1 / length] * length, rel=0.04)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_masks_depend_on_seed_item_and_length_alone(estimator):
    def masks(**changed):
        options = {"draws": 16, "seed": 3, "item": "task|7", "estimator": estimator}
        return answer_masks(20, **{**options, **changed})

    assert masks() == masks()
    assert masks() != masks(seed=4)
    assert masks() != masks(item="task|8")


def test_masks_are_the_same_on_every_machine():
    masks = answer_masks(6, draws=3, seed=0, item="x")
    assert list(masks) == [(1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4, 5)]


def test_an_unknown_estimator_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'dream'"):
        answer_masks(3, draws=2, seed=0, item="x", estimator="draem")
