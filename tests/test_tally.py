"""Exact tallies: shards merge to the very bits of the whole."""

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.tally import Tally

scores = st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1)


@given(scores, st.integers(1, 8), st.randoms())
def test_any_cut_in_any_order_gives_the_same_bits(values, parts, random):
    whole = Tally.of(values)
    shuffled = random.sample(values, len(values))
    merged = sum((Tally.of(shuffled[i::parts]) for i in range(parts)), Tally())
    assert merged == whole
    assert (merged.mean, merged.stderr) == (whole.mean, whole.stderr)


@given(st.lists(st.sampled_from([0.0, 1.0, 0.5]), min_size=2))
def test_mean_and_stderr_are_those_of_the_textbook(values):
    tally = Tally.of(values)
    assert tally.mean == pytest.approx(statistics.fmean(values), rel=1e-15)
    expected = statistics.stdev(values) / math.sqrt(len(values))
    assert tally.stderr == pytest.approx(expected, rel=1e-12)


def test_one_item_has_no_standard_error():
    assert Tally.of([1.0]).stderr is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match=r"NaN|not finite"):
        Tally.of([1.0, value])
