"""Stages that hold tensors: made once, and then read back to the last bit."""

from dataclasses import replace

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load as load_calibration
from dllm_sweep.spec import CalibrationSpec, ModelRef
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.shared import calibration_batches, statistics_of
from dllm_sweep.workers.stages import StageCache

REF = ModelRef(name="llada-tiny", digest="m" * 64)
TEXT = CalibrationSpec(samples=5, length=16, masking="uniform", digest="t" * 64)


@pytest.fixture
def cache(tmp_path):
    return StageCache(Depot(tmp_path))


@pytest.fixture
def kept(tmp_path):
    """How many calibration files lie in the cache."""
    return lambda: len(list((tmp_path / "stages" / "calibration").iterdir()))


@pytest.fixture(scope="module")
def model():
    return load_model("llada-tiny", device="cpu")


TEXTS = {
    "uniform": TEXT,
    "weighted": replace(TEXT, visible_weight=0.7),
    "chat": replace(TEXT, source="tiny-chat", masking="chat", length=64),
    "trajectory": replace(TEXT, masking="trajectory", steps=4),
}


def same(first, second):
    pairs = [(a.tensors(), b.tensors()) for a, b in zip(first, second, strict=True)]
    return all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs
    )


@pytest.mark.parametrize("kind", TEXTS)
def test_calibration_text_comes_back_as_it_was_made_in_batches_of_any_size(
    cache, model, kind, kept
):
    for size in (5, 2, 5):
        found = calibration_batches(cache, model, REF, TEXTS[kind], size)
        assert same(found, load_calibration(TEXTS[kind], model, batch_size=size))
    assert kept() == 1


def test_what_a_model_writes_is_kept_for_its_type_and_what_it_reads_for_all(cache, model, kept):
    half = load_model("llada-tiny", device="cpu", dtype="bfloat16")
    for one in (model, half):
        calibration_batches(cache, one, REF, TEXTS["uniform"], 5)
    assert kept() == 1
    for one in (model, half):
        calibration_batches(cache, one, REF, TEXTS["trajectory"], 5)
    assert kept() == 3


def test_writing_says_how_far_it_is(cache, model):
    told = []
    calibration_batches(
        cache, model, REF, TEXTS["trajectory"], 5, lambda done, total: told.append((done, total))
    )
    assert told[-1] == (1, 1)
    calibration_batches(cache, model, REF, TEXTS["trajectory"], 5, lambda *_: told.append("again"))
    assert "again" not in told


def test_activation_statistics_are_measured_once_and_come_back_exactly(cache, model):
    batches = load_calibration(TEXT, model, batch_size=2)
    measure = statistics_of(cache, REF, TEXT)
    first = measure(model, batches, None)
    runs = []
    hook = model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    again = measure(model, batches, torch.device("cpu"))
    hook.remove()
    assert runs == []
    assert list(again) == list(first)
    for name, one in first.items():
        pairs = zip(one.tensors().values(), again[name].tensors().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
