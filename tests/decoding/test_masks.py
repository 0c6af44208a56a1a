import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.decoding.masks import answer_masks

few = st.integers(1, 12)


@given(length=few, draws=st.integers(1, 64), seed=st.integers(0, 5))
def test_weights_sum_to_one_and_masks_lie_in_the_answer(length, draws, seed):
    masks = answer_masks(length, draws=draws, seed=seed, item="x")
    assert math.isclose(sum(masks.values()), 1)
    for mask in masks:
        assert mask
        assert list(mask) == sorted(set(mask))
        assert set(mask) <= set(range(length))


@given(length=few)
def test_enough_draws_list_every_mask_with_its_probability(length):
    masks = answer_masks(length, draws=2**length - 1, seed=0, item="x")
    assert len(masks) == 2**length - 1
    for mask, weight in masks.items():
        assert math.isclose(weight, 1 / length / math.comb(length, len(mask)))


@pytest.mark.parametrize(("length", "draws"), [(6, 4), (5, 16), (9, 32), (7, 10)])
def test_mask_counts_are_uniform_on_average(length, draws):
    """The authors' rounding of the counts is biased where it hits halves; ours has none."""
    items = 4000
    shares = Counter()
    for item in range(items):
        masks = answer_masks(length, draws=draws, seed=1, item=str(item))
        for mask, weight in masks.items():
            shares[len(mask)] += weight / items
    spread = 4 / math.sqrt(items) / draws
    for count in range(1, length + 1):
        assert abs(shares[count] - 1 / length) < spread


def test_every_position_is_hidden_equally_often():
    items, length = 3000, 8
    hidden = Counter()
    for item in range(items):
        for mask, weight in answer_masks(length, draws=8, seed=0, item=str(item)).items():
            hidden.update(dict.fromkeys(mask, weight / items))
    for place in range(length):
        assert abs(hidden[place] - (length + 1) / 2 / length) < 0.02


def test_masks_depend_on_seed_item_and_length_alone():
    masks = answer_masks(20, draws=16, seed=3, item="task|7")
    assert masks == answer_masks(20, draws=16, seed=3, item="task|7")
    assert masks != answer_masks(20, draws=16, seed=4, item="task|7")
    assert masks != answer_masks(20, draws=16, seed=3, item="task|8")


def test_masks_are_the_same_on_every_machine():
    masks = answer_masks(6, draws=3, seed=0, item="x")
    assert list(masks) == [(1, 4), (0, 2, 3, 4), (0, 1, 2, 3, 4, 5)]
