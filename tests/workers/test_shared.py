"""Stages that hold tensors: made once, and then read back to the last bit."""

from dataclasses import dataclass

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load as load_calibration
from dllm_sweep.spec import CalibrationSpec, ModelRef
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.shared import (
    activation_statistics,
    calibration_batches,
    transformed_weights,
)
from dllm_sweep.workers.stages import StageCache

REF = ModelRef(name="llada-tiny", digest="m" * 64)
TEXT = CalibrationSpec(samples=5, length=16, masking="uniform", digest="t" * 64)


@pytest.fixture
def cache(tmp_path):
    return StageCache(Depot(tmp_path))


@pytest.fixture(scope="module")
def model():
    return load_model("llada-tiny", device="cpu")


@dataclass
class Doubling:
    """Doubles what a norm gives and halves what reads it: exact, and the logits stay."""

    name: str = "doubling"
    version: int = 1
    factor: float = 2.0
    times: int = 0

    @property
    def parameters(self):
        return (("factor", self.factor),)

    def apply(self, model):
        self.times += 1
        for block in model.blocks:
            block.post_attention_layernorm.weight *= self.factor
            for linear in (block.mlp.gate_proj, block.mlp.up_proj):
                linear.weight /= self.factor


def same(first, second):
    return all(
        torch.equal(a.input_ids, b.input_ids) and torch.equal(a.masked, b.masked)
        for a, b in zip(first, second, strict=True)
    )


def test_calibration_text_comes_back_as_it_was_read_in_batches_of_any_size(cache, model):
    for size in (5, 2, 5):
        found = calibration_batches(cache, model, REF, TEXT, size)
        assert same(found, load_calibration(TEXT, model, batch_size=size))


def test_activation_statistics_are_measured_once_and_come_back_exactly(cache, model):
    batches = load_calibration(TEXT, model, batch_size=2)
    first = activation_statistics(cache, model, REF, TEXT, batches)
    runs = []
    hook = model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    again = activation_statistics(cache, model, REF, TEXT, batches)
    hook.remove()
    assert runs == []
    assert list(again) == list(first)
    for name, one in first.items():
        pairs = zip(one.tensors().values(), again[name].tensors().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_transformed_weights_are_computed_once_and_come_back_exactly(cache, model):
    doubling, ids = Doubling(), torch.arange(24)[None]
    computed, restored = (load_model("llada-tiny", device="cpu") for _ in range(2))
    for fresh in (computed, restored):
        transformed_weights(cache, fresh, REF, doubling)
    assert doubling.times == 1
    pairs = zip(computed.host.parameters(), restored.host.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    up = restored.blocks[0].mlp.up_proj.weight
    assert torch.equal(up, model.blocks[0].mlp.up_proj.weight / 2)
    assert torch.equal(restored.logits(ids), model.logits(ids))


def test_another_parameter_is_another_transform(cache):
    for factor in (2.0, 4.0):
        fresh, doubling = load_model("llada-tiny", device="cpu"), Doubling(factor=factor)
        transformed_weights(cache, fresh, REF, doubling)
        assert doubling.times == 1
