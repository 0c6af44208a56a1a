from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.decoding import batching
from dllm_sweep.decoding.batching import batches
from dllm_sweep.errors import InputError

MODEL = SimpleNamespace(
    device=torch.device("cpu"),
    dtype=torch.float32,
    host=SimpleNamespace(config=SimpleNamespace(vocab_size=2**16)),
)
TOKENS, LOGITS = batching._TOKENS["cpu"], batching._LOGITS_BYTES["cpu"]
rows = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 600)), max_size=60)


@given(rows)
def test_batches_hold_every_row_once_within_both_budgets(rows):
    lengths, reads = [length for length, _ in rows], [count for _, count in rows]
    found = list(batches(MODEL, lengths, None, reads))
    assert sorted(row for batch in found for row in batch) == list(range(len(rows)))
    for batch in found:
        tokens = len(batch) * max(lengths[row] for row in batch)
        logits = len(batch) * max(reads[row] for row in batch) * 2**16 * 4
        assert len(batch) == 1 or (tokens <= TOKENS and logits <= LOGITS)


@given(rows)
def test_rows_come_longest_first(rows):
    lengths = [length for length, _ in rows]
    order = [row for batch in batches(MODEL, lengths, 4) for row in batch]
    assert [lengths[row] for row in order] == sorted(lengths, reverse=True)


def test_fewer_logits_make_larger_batches():
    lengths = [100] * 64
    whole, some = (list(batches(MODEL, lengths, None, reads)) for reads in (None, [1] * 64))
    assert (len(whole[0]), len(some[0])) == (10, 40)


def test_a_batch_size_overrides_both_budgets():
    assert [len(one) for one in batches(MODEL, [5000] * 7, 3)] == [3, 3, 1]
    with pytest.raises(InputError, match="batch_size 0"):
        list(batches(MODEL, [1], 0))
