import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.decoding import nll_bound
from dllm_sweep.errors import CheckpointError, InputError

DREAM = Path(__file__).parents[1] / "data" / "dream-random"
TEXT = [5, 9, 17, 33]


def by_definition(model, front, text, steps=4000):
    """Mean over t of 1/t times the expected cross-entropy, all masks and many t by hand."""
    total = 0.0
    for hidden in itertools.product([False, True], repeat=len(text)):
        shown = [
            model.special.mask_id if one else token for one, token in zip(hidden, text, strict=True)
        ]
        logits = model.logits(torch.tensor([[*front, *shown]]))[0, len(front) :].double()
        nats = -logits.log_softmax(-1)[range(len(text)), text]
        loss, count = float(nats[torch.tensor(hidden)].sum()), sum(hidden)
        times = [(step + 0.5) / steps for step in range(steps)]
        chances = (t ** (count - 1) * (1 - t) ** (len(text) - count) for t in times)
        total += loss * math.fsum(chances) / steps if count else 0.0
    return total


def test_all_masks_of_a_tiny_text_give_the_bound_by_its_definition(model):
    (found,) = nll_bound(model, [TEXT])
    assert found.nats == pytest.approx(by_definition(model, [], TEXT), rel=1e-6)
    assert (found.tokens, found.rows, found.token_forwards) == (4, 15, 60)
    assert found.per_token == found.nats / 4


def test_begin_of_text_stands_before_each_window_of_families_that_begin_with_it():
    dream = load_model(str(DREAM))
    front = [dream.special.bos_id]
    (found,) = nll_bound(dream, [TEXT], window=3)
    expected = by_definition(dream, front, TEXT[:2]) + by_definition(dream, front, TEXT[2:])
    assert found.nats == pytest.approx(expected, rel=1e-6)


def test_long_texts_are_cut_into_windows_that_are_scored_apart(model):
    texts = [[*range(40, 51)], [], [7] * 5]
    cut = nll_bound(model, texts, window=4, draws=8)
    assert [one.tokens for one in cut] == [11, 0, 5]
    assert (cut[1].nats, cut[1].per_token) == (0.0, 0.0)
    alone = nll_bound(model, [texts[0][8:]], window=4, draws=8)
    exact = nll_bound(model, [texts[0][:4], texts[0][4:8]], draws=15)
    whole = nll_bound(model, texts[:1], window=4, draws=15)
    expected = sum(one.nats for one in (*alone, *exact))
    assert whole[0].nats == pytest.approx(expected, rel=1e-6)


def test_the_estimate_is_of_a_text_alone_and_the_same_for_any_batch(model):
    texts = [[*range(40, 60)], [*range(90, 120)]]
    options = {"draws": 8, "items": ["a", "b"]}
    together = [one.nats for one in nll_bound(model, texts, **options)]
    alone = [one.nats for one in nll_bound(model, texts[1:], draws=8, items=["b"], batch_size=1)]
    assert together[1:] == pytest.approx(alone, rel=1e-6)
    plain = [one.nats for one in nll_bound(model, texts, plain=True, **options)]
    assert together == pytest.approx(plain, rel=1e-6)


def test_progress_counts_windows(model):
    seen = []
    nll_bound(model, [[1, 2, 3], [4, 5]], window=2, progress=lambda *at: seen.append(at))
    assert seen == [(3, 3)]


@pytest.mark.parametrize("window", [0, 513])
def test_a_window_that_does_not_fit_is_refused(model, window):
    with pytest.raises(InputError, match=f"window {window} must leave room"):
        nll_bound(model, [TEXT], window=window)


def test_a_begin_of_text_that_nobody_names_is_an_error():
    dream = load_model(str(DREAM))
    dream.special = replace(dream.special, bos_id=None)
    with pytest.raises(CheckpointError, match="'dream' begin with begin-of-text"):
        nll_bound(dream, [TEXT])
