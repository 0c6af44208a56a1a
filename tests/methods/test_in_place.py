"""The call for notebooks: any form of calibration, one model in place."""

from pathlib import Path

import pytest
import torch

import dllm_sweep
from dllm_sweep.errors import InputError
from dllm_sweep.methods.in_place import calibration_batches
from dllm_sweep.spec import CalibrationSpec

IDS = torch.randint(2, 60, (20, 32), generator=torch.Generator().manual_seed(3))


def test_the_same_model_comes_back_with_its_report(small_llada):
    before = small_llada.logits(IDS)
    assert dllm_sweep.quantize(small_llada, scheme="w4a16-g16") is small_llada
    assert len(small_llada.quantization_report.modules) == 14
    assert not torch.equal(small_llada.logits(IDS), before)


def test_tensors_lists_and_batches_are_the_same_calibration(small_llada):
    batches = calibration_batches(small_llada, IDS)
    listed = calibration_batches(small_llada, IDS.tolist())
    assert calibration_batches(small_llada, batches) == batches
    for one, other in zip(batches, listed, strict=True):
        assert torch.equal(one.input_ids, other.input_ids)
    assert torch.equal(torch.cat([batch.input_ids for batch in batches]), IDS)


def test_mask_tokens_in_given_ids_are_known_as_masked(small_llada):
    ids = IDS.clone()
    ids[0, 5] = small_llada.special.mask_id
    masked = calibration_batches(small_llada, ids)[0].masked
    assert masked.nonzero().tolist() == [[0, 5]]


def test_text_is_read_by_its_specification(tmp_path):
    checkpoint = Path(__file__).parents[1] / "data" / "llada-random"
    model = dllm_sweep.load_model(str(checkpoint), device="cpu")
    text = tmp_path / "text.txt"
    text.write_text("some words to calibrate on " * 200)
    spec = CalibrationSpec(source=str(text), samples=8, length=32)
    dllm_sweep.quantize(model, method="gptq", scheme="w4a16-g32", calibration=spec)
    assert model.quantization_report.modules[0].group_size == 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "w9a16"}, "bits are 2 to 8"),
        ({"method": "nearest"}, "unknown method 'nearest'"),
        ({"clip": 0.5}, "unknown parameter of rtn 'clip'"),
    ],
)
def test_a_wrong_name_leaves_the_model_alone(arguments, message, small_llada):
    before = small_llada.logits(IDS)
    with pytest.raises(InputError, match=message):
        dllm_sweep.quantize(small_llada, **arguments)
    assert torch.equal(small_llada.logits(IDS), before)
    assert small_llada.quantization_report is None
