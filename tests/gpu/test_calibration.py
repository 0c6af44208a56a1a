"""Calibration on a GPU: what a model there writes, and inputs of a model that lies on the CPU."""

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.calibration import load
from dllm_sweep.quant.input_statistics import input_statistics
from dllm_sweep.spec import CalibrationSpec

pytestmark = pytest.mark.gpu

SPEC = CalibrationSpec(samples=8, length=32, masking="trajectory", prompt_share=0.5)


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_a_model_on_the_gpu_writes_states_of_the_same_shares_and_they_lie_on_the_cpu(name):
    here, there = (
        load(SPEC, load_model(name, device=device, dtype="float32"), batch_size=8)[0]
        for device in ("cpu", "cuda")
    )
    assert there.input_ids.device.type == "cpu"
    assert torch.equal(here.masked.sum(1), there.masked.sum(1))
    assert (here.input_ids == there.input_ids).double().mean() > 0.95


def test_a_model_on_the_cpu_is_measured_on_the_gpu_and_stays_where_it_is():
    model = load_model("llada-tiny", device="cpu", dtype="float32")
    batches = load(CalibrationSpec(samples=4, length=32, masking="uniform"), model, batch_size=2)
    here = input_statistics(model, batches)
    there = input_statistics(model, batches, torch.device("cuda"))
    assert {p.device.type for p in model.host.parameters()} == {"cpu"}
    for name, one in here.items():
        assert torch.allclose(one.magnitude, there[name].magnitude, rtol=1e-3, atol=1e-4)
        assert torch.allclose(one.mean_magnitude, there[name].mean_magnitude, rtol=1e-3, atol=1e-5)
