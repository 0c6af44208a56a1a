"""Forward passes with kept keys and values against passes over the whole sequence."""

import pytest
import torch

from dllm_sweep.models.cache import KeyValueCache
from dllm_sweep.models.work import Work

FULL = ("llada", "dream", "illada")


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def at(logits, positions):
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[2]))


@pytest.fixture
def ids():
    return torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[(0, 0, 0), (0, 3, 7)], ids=["equal", "padded"])
def shown(request, ids):
    mask = torch.ones_like(ids)
    for row, padding in enumerate(request.param):
        mask[row, :padding] = 0
    return mask


POSITIONS = torch.tensor([[13, 14, 15], [15, 13, 14], [13, 13, 15]])


@pytest.mark.parametrize("name", [*FULL, "sdar"])
def test_while_nothing_changes_the_prefix_and_the_dual_cache_are_exact(
    every_family, name, ids, shown
):
    model, cache = every_family[name], KeyValueCache()
    expected = at(model.logits(ids, shown), POSITIONS)
    whole = model.logits_cached(ids, POSITIONS, shown, cache=cache)
    prefix = model.logits_cached(ids[:, 12:], POSITIONS, shown, cache=cache, start=12)
    dual = model.logits_cached(ids[:, 12:16], POSITIONS, shown, cache=cache, start=12)
    for found in (whole, prefix, dual):
        assert relative_error(found, expected) < 1e-5
    assert cache.length == 24


@pytest.mark.parametrize("name", FULL)
def test_the_dual_cache_sees_the_blocks_new_tokens_and_the_rests_old_ones(
    every_family, name, ids, shown
):
    """A block's new token acts at once; the others' keys and values are those of the fill."""
    model, cache = every_family[name], KeyValueCache()
    model.logits_cached(ids, POSITIONS, shown, cache=cache)
    changed = ids.clone()
    changed[:, 14] = (ids[:, 14] + 1) % 90
    found = model.logits_cached(changed[:, 12:16], POSITIONS, shown, cache=cache, start=12)
    exact = at(model.logits(changed, shown), POSITIONS)
    stale = at(model.logits(ids, shown), POSITIONS)
    assert 1e-5 < relative_error(found, exact) < relative_error(stale, exact)


@pytest.mark.parametrize("name", FULL)
def test_what_is_cached_is_what_a_pass_computes(every_family, name, ids):
    """One block: keys and values come from the embeddings, so a changed rest changes them alone."""
    model, cache = every_family[name], KeyValueCache()
    model.logits_cached(ids, POSITIONS, cache=cache)
    changed = ids.clone()
    changed[:, 12:16] = 5
    model.logits_cached(changed[:, 12:16], POSITIONS, cache=cache, start=12)
    fresh = KeyValueCache()
    model.logits_cached(changed, POSITIONS, cache=fresh)
    for found, expected in zip(cache._kept[0], fresh._kept[0], strict=True):
        assert relative_error(found, expected) < 1e-5


def test_block_causal_keys_and_values_are_exact_from_left_to_right(every_family, ids, shown):
    """Blocks are forwarded once finished; what comes later never changes them."""
    model, cache = every_family["sdar"], KeyValueCache()
    aligned = torch.ones_like(ids)
    aligned[1, :4] = 0
    aligned[2, :8] = 0
    whole = model.logits(ids, aligned)
    for start in range(0, 24, 4):
        part = torch.arange(start, start + 4).expand(3, -1)
        garbled = ids[:, start : start + 4].flip(1)
        model.logits_cached(garbled, part, aligned, cache=cache, start=start)
        found = model.logits_cached(
            ids[:, start : start + 4], part, aligned, cache=cache, start=start
        )
        real = aligned[:, start].bool()
        assert relative_error(found[real], at(whole, part)[real]) < 1e-5
        assert cache.length == start + 4


@pytest.mark.parametrize("name", FULL)
def test_rows_that_are_done_leave(every_family, name, ids, shown):
    model, cache = every_family[name], KeyValueCache()
    model.logits_cached(ids, POSITIONS, shown, cache=cache)
    rows = torch.tensor([2, 0])
    cache.select(rows)
    found = model.logits_cached(
        ids[rows, 12:16], POSITIONS[rows], shown[rows], cache=cache, start=12
    )
    assert relative_error(found, at(model.logits(ids, shown), POSITIONS)[rows]) < 1e-5


def test_only_forwarded_tokens_are_counted(every_family, ids):
    model, cache = every_family["llada"], KeyValueCache()
    model.logits_cached(ids, POSITIONS, cache=cache)
    before = model.work
    model.logits_cached(ids[:, 12:16], POSITIONS, cache=cache, start=12)
    assert model.work - before == Work(calls=1, rows=3, tokens=12, head_tokens=9)


def test_a_gap_is_refused(every_family, ids):
    cache = KeyValueCache()
    model = every_family["llada"]
    model.logits_cached(ids[:, :8], torch.tensor([[3]] * 3), cache=cache)
    with pytest.raises(ValueError, match="from 8 to 12 were never forwarded"):
        model.logits_cached(ids[:, 12:16], POSITIONS, cache=cache, start=12)


def test_a_shifted_model_cannot_predict_the_first_position_of_a_part(every_family, ids):
    model, cache = every_family["dream"], KeyValueCache()
    model.logits_cached(ids, POSITIONS, cache=cache)
    first = torch.tensor([[12, 13]] * 3)
    with pytest.raises(ValueError, match="ask for positions from 13 on"):
        model.logits_cached(ids[:, 12:16], first, cache=cache, start=12)
