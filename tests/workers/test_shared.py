"""Stages that hold tensors: made once, and then read back to the last bit."""

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load as load_calibration
from dllm_sweep.spec import CalibrationSpec, ModelRef
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.shared import (
    activation_statistics,
    calibration_batches,
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
