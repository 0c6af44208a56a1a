"""What linears read, summed up over batches."""

from dataclasses import replace

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.quant.capture import watching
from dllm_sweep.quant.input_statistics import input_statistics


@pytest.fixture(scope="module")
def model():
    return load_model("llada-tiny", device="cpu")


def batch(ids, mask=None):
    return CalibrationBatch(input_ids=ids, attention_mask=mask, masked=torch.zeros_like(ids).bool())


def read_by(model, name, ids):
    """The inputs of one linear, one row a token."""
    seen = []
    with watching(model.host, [name], lambda _, x: seen.append(x.flatten(0, -2))):
        model.logits(ids)
    return torch.cat(seen)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj"])
def test_statistics_are_those_of_the_inputs_themselves(model, name):
    ids = torch.randint(100, 400, (4, 16), generator=torch.Generator().manual_seed(0))
    found = input_statistics(model, [batch(ids[:3]), batch(ids[3:])])[name]
    x = torch.cat([read_by(model, name, ids[:3]), read_by(model, name, ids[3:])])
    assert torch.equal(found.largest, x.amax(0))
    assert torch.equal(found.smallest, x.amin(0))
    assert torch.equal(found.magnitude, x.abs().amax(0))
    assert torch.allclose(found.mean_magnitude, x.double().abs().mean(0), rtol=1e-12)
    assert found.tokens == 64


def test_means_are_weighted_and_maxima_are_over_tokens_that_count(model):
    name = "model.layers.1.mlp.down_proj"
    ids = torch.randint(100, 400, (4, 16), generator=torch.Generator().manual_seed(1))
    weights = torch.rand(4, 16, generator=torch.Generator().manual_seed(2))
    weights[:, ::3] = 0
    parts = [replace(batch(ids[part]), weights=weights[part]) for part in (slice(3), slice(3, 4))]
    found = input_statistics(model, parts)[name]
    x = torch.cat([read_by(model, name, ids[:3]), read_by(model, name, ids[3:])])
    w = weights.flatten().double()
    assert torch.equal(found.magnitude, x[w > 0].abs().amax(0))
    expected = (x.double().abs() * w[:, None]).sum(0) / w.sum()
    assert torch.allclose(found.mean_magnitude, expected, rtol=1e-6)
    assert found.tokens == int((w > 0).sum())
    assert found.weight == pytest.approx(float(w.sum()))


def test_blocks_that_visit_a_device_come_home_and_give_the_same(model):
    ids = torch.randint(100, 400, (2, 16), generator=torch.Generator().manual_seed(0))
    home, away = (input_statistics(model, [batch(ids)], d) for d in (None, torch.device("cpu")))
    for name, one in home.items():
        pairs = zip(one.tensors().values(), away[name].tensors().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert not any(block._forward_pre_hooks for block in model.blocks)


def test_every_linear_has_statistics_and_padding_is_left_out(model):
    ids = torch.full((1, 8), 200)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0, 0]])
    found = input_statistics(model, [batch(ids, mask)])
    assert list(found) == list(model.linears())
    assert {int(one.tokens) for one in found.values()} == {5}
