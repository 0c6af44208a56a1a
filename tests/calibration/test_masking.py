"""What each mode hides: shares, prefixes, seeds, and that batches are cut anyhow."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep import load_model, plugins
from dllm_sweep.calibration import drawing, load
from dllm_sweep.calibration.options import KIND, prompt_tokens
from dllm_sweep.spec import CalibrationSpec

MODES = plugins.names(KIND)


@pytest.fixture(scope="module")
def model():
    return load_model("llada-tiny", device="cpu")


def spec_of(mode, **options):
    source = "tiny-chat" if mode == "chat" else "tiny-text"
    size = {"samples": 10, "length": 16 if mode == "trajectory" else 48}
    return CalibrationSpec(source=source, **{**size, "masking": mode, **options})


def rows_of(batches):
    """Every sequence without its padding: ids and where they are masked."""
    return [
        (ids[:length], masked[:length])
        for batch in batches
        for ids, masked, length in zip(
            batch.input_ids.tolist(), batch.masked.tolist(), lengths_of(batch), strict=True
        )
    ]


def lengths_of(batch):
    if batch.attention_mask is None:
        return [batch.input_ids.shape[1]] * len(batch.input_ids)
    return batch.attention_mask.sum(1).tolist()


def test_there_are_five_modes():
    assert MODES == ("chat", "none", "prefix", "trajectory", "uniform")


@pytest.mark.parametrize("mode", MODES)
def test_sequences_are_as_many_as_asked_for_and_depend_on_the_seed_alone(mode, model):
    spec = spec_of(mode)
    first = rows_of(load(spec, model, batch_size=10))
    assert len(first) == 10
    assert all(1 <= len(ids) <= 48 for ids, _ in first)
    for size in (1, 3, 7):
        assert rows_of(load(spec, model, batch_size=size)) == first
    assert rows_of(load(replace(spec, seed=1), model, batch_size=10)) != first


@pytest.mark.parametrize("mode", MODES)
def test_masked_positions_hold_mask_tokens(mode, model):
    some = False
    for batch in load(spec_of(mode), model, batch_size=4):
        assert (batch.input_ids[batch.masked] == model.special.mask_id).all()
        some = some or bool(batch.masked.any())
        shown = batch.attention_mask
        if shown is not None:
            assert not batch.masked[shown == 0].any()
            assert (batch.input_ids[shown == 0] == model.special.pad_id).all()
    assert some == (mode != "none")


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_weights_follow_the_masks_and_padding_counts_nothing(mode, model):
    spec = spec_of(mode, masked_weight=1.0, visible_weight=0.7)
    for batch in load(spec, model, batch_size=4):
        expected = torch.where(batch.masked, 1.0, 0.7)
        if batch.attention_mask is not None:
            expected = expected * batch.attention_mask
        assert torch.equal(batch.weights, expected)
    plain = load(spec_of(mode), model, batch_size=4)
    assert all((batch.weights is None) == (batch.attention_mask is None) for batch in plain)


@settings(deadline=None, max_examples=30)
@given(
    samples=st.integers(1, 12),
    length=st.integers(1, 60),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_prefix_is_never_masked_and_the_last_sequence_is_masked_behind_it(
    samples, length, share, seed, model
):
    spec = spec_of("prefix", samples=samples, length=length, prompt_share=share, seed=seed)
    prompt = prompt_tokens(spec)
    assert abs(prompt - share * length) <= 1
    assert prompt <= share * length + 1e-5
    (batch,) = load(spec, model, batch_size=samples)
    assert not batch.masked[:, :prompt].any()
    assert batch.masked[-1, prompt:].all()
    clean = load(replace(spec, masking="none", prompt_share=0.25), model, batch_size=samples)[0]
    assert torch.equal(batch.input_ids[~batch.masked], clean.input_ids[~batch.masked])


def test_a_quarter_is_thirty_two_of_a_hundred_and_twenty_eight():
    assert prompt_tokens(CalibrationSpec(masking="prefix")) == 32
    assert prompt_tokens(CalibrationSpec(masking="prefix", prompt_share=0.29, length=100)) == 29


def test_prefix_masks_on_an_even_grid_of_rates(model):
    spec = spec_of("prefix", samples=40, length=200)
    (batch,) = load(spec, model, batch_size=40)
    share = batch.masked[:, 50:].double().mean(1)
    rates = torch.arange(1, 41, dtype=torch.float64) / 40
    # Each token alone is drawn: the share of 150 has the deviation sqrt(t (1 - t) / 150).
    bound = 4.5 * (rates * (1 - rates) / 150).sqrt() + 1e-12
    assert ((share - rates).abs() <= bound).all()


def hidden(sequences=4000, length=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    rates = drawing.uniform_rates(sequences, generator)
    return drawing.chosen(rates, length, generator)


def test_uniform_hides_half_on_average_and_every_share_alike():
    share = hidden().double().mean(1)
    assert abs(share.mean() - 0.5) < 0.02
    # A uniform rate has the variance 1/12; choosing the tokens adds E[t (1 - t)] / length.
    assert abs(share.var() - (1 / 12 + 1 / 6 / 64)) < 0.005
    counts = torch.histc(share.float(), bins=10, min=0, max=1)
    assert counts.min() > 0.8 * 400
    assert counts.max() < 1.2 * 400


def test_uniform_prefers_no_position():
    by_position = hidden().double().mean(0)
    assert (by_position - 0.5).abs().max() < 0.05


def test_tokens_of_one_sequence_share_a_rate():
    masked = hidden().double()
    left, right = masked[:, :32].mean(1), masked[:, 32:].mean(1)
    assert torch.corrcoef(torch.stack((left, right)))[0, 1] > 0.9
