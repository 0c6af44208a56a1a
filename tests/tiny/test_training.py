from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from dllm_sweep.models.locate import EMBEDDED
from dllm_sweep.tiny import corpus, masking, stream, train
from dllm_sweep.tiny.families import FAMILIES
from dllm_sweep.tiny.network import Network, Shape
from dllm_sweep.tiny.tokenizer import END, load_tokenizer

LENGTH = 256


@pytest.fixture(scope="module")
def packed():
    tokenizer = load_tokenizer(EMBEDDED / "llada-tiny")
    made = corpus.pack(Random(0), tokenizer, 16, LENGTH)
    return stream._on_device(made, LENGTH, "cpu")


def test_sequences_hold_whole_examples(packed):
    assert packed.tokens.shape == (16, LENGTH)
    assert int(packed.segments.max()) < masking.SEGMENTS
    assert (packed.segments > 0).float().mean() > 0.8
    assert (packed.tokens[packed.segments == 0] == END).all()


def test_only_responses_are_hidden_and_each_at_least_once(packed):
    torch.manual_seed(0)
    tokens, segments, offsets = _long(packed)
    chosen = masking.hidden(tokens, segments, offsets)
    assert not chosen[offsets == corpus.NOT_RESPONSE].any()
    for row in range(len(tokens)):
        for segment in range(1, int(segments[row].max()) + 1):
            assert chosen[row][segments[row] == segment].any()


def test_the_number_hidden_is_uniform_under_lladas_law():
    torch.manual_seed(0)
    segments = torch.ones(20_000, 4, dtype=torch.long)
    counts = masking._law(segments).sum(1).bincount(minlength=5) / 20_000
    assert torch.allclose(counts, torch.full((5,), 0.2), atol=0.02)


def test_a_state_of_decoding_knows_a_start(packed):
    torch.manual_seed(0)
    tokens = torch.full((4000, 8), 9)
    segments, offsets = torch.ones_like(tokens), torch.arange(8).expand(4000, 8)
    chosen = masking._state(tokens, segments, offsets).float().mean(0)
    assert (chosen.diff() > 0).all()


def test_the_loss_is_a_mean_of_means():
    torch.manual_seed(0)
    logits, tokens = torch.randn(1, 5, 7), torch.randint(0, 7, (1, 5))
    segments = torch.tensor([[1, 1, 1, 2, 0]])
    chosen = torch.tensor([[True, False, True, True, False]])
    each = torch.nn.functional.cross_entropy(logits[0], tokens[0], reduction="none")
    wanted = ((each[0] + each[2]) / 2 + each[3]) / 2
    torch.testing.assert_close(masking.segment_loss(logits, tokens, segments, chosen), wanted)


def test_a_packed_example_is_read_as_if_alone(packed):
    torch.manual_seed(0)
    network = Network(Shape(layers=2))
    tokens, segments, _ = _long(packed)
    with torch.no_grad():
        together = network(tokens[:1], masking.visibility(segments[:1]))
        place = segments[0] == 2
        alone = network(tokens[:1, place], torch.ones(1, 1, 1, 1, dtype=torch.bool))
    torch.testing.assert_close(together[:, place], alone, rtol=1e-3, atol=1e-4)


def test_a_shifted_prediction_is_read_one_position_earlier():
    logits = torch.arange(12.0).reshape(1, 4, 3)
    moved = masking.read_earlier(logits)
    assert torch.equal(moved[:, 1:], logits[:, :-1])
    assert torch.equal(moved[:, 0], logits[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_training_changes_the_weights_and_repeats(packed, tmp_path, family):
    first, again = (_trained(packed, tmp_path, family) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert (tmp_path / "model.safetensors").is_file()


def test_the_rate_warms_up_and_falls():
    plan = _plan(Path(), "llada", steps=100, warmup=10)
    rates = [train.rate_at(step, plan) for step in range(101)]
    assert max(rates) == rates[9] == 1.0
    assert rates[100] == pytest.approx(0.01)


def _trained(packed, folder, family):
    torch.manual_seed(0)
    network = Network(replace(FAMILIES[family].shape, layers=1))
    batches = packed.batches(4, torch.Generator().manual_seed(0))
    train.train(network, batches, _plan(folder, family, steps=3, warmup=2))
    return [weight.detach().clone() for weight in network.parameters()]


def _plan(folder, family, *, steps, warmup):
    return train.Plan(
        out=folder,
        steps=steps,
        batch=4,
        sequences=16,
        length=LENGTH,
        rate=1e-3,
        warmup=warmup,
        seed=0,
        workers=1,
        device="cpu",
        compile=False,
        save_every=3,
        family=family,
    )


def _long(packed):
    return packed.tokens.long(), packed.segments.long(), packed.offsets.long()
