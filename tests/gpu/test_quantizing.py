"""Quantizing on one GPU: models whose weights live on the CPU, and ones that stop half way."""

import dataclasses
import io
from pathlib import Path

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.methods import build
from dllm_sweep.methods.base import Workspace
from dllm_sweep.methods.in_place import calibration_batches
from dllm_sweep.progress.blocks import BlockLines
from dllm_sweep.quant import changes
from dllm_sweep.quant.visiting import visiting
from dllm_sweep.saving.job import Machine, plan_job, run_job
from dllm_sweep.spec import QuantScheme

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda")
CASES = {
    "rtn": "w4a16-g64",
    "gptq": "w4a16-g64",
    "awq": "w4a16-g64",
    "smoothquant": "w8a8",
    "quarot": "w4a4",
    "duquant": "w4a4",
}


def load(device="cuda"):
    return load_model("llada-tiny", device=device, dtype="float32")


def quantize(model, method, workspace=None):
    ids = torch.randint(2, 90, (32, 64), generator=torch.Generator().manual_seed(0))
    scheme = QuantScheme.parse(CASES[method])
    return build(method, {}).quantize(
        model,
        scheme,
        calibration_batches(model, ids),
        workspace=workspace or Workspace(device=GPU),
    )


def weights(model):
    return {name: tensor.cpu() for name, tensor in model.host.state_dict().items()}


class Memory:
    """Keeps finished blocks until one attempt fails, and gives them to the next."""

    def __init__(self, fails_after):
        self.fails_after = fails_after
        self.kept = {}

    def restore(self, model, index):
        if index not in self.kept:
            return None
        tensors, header, record = self.kept[index]
        changes.put(model, tensors, header, Path("memory"))
        return record

    def keep(self, model, index, record):
        tensors, header = changes.collect(model, f"{model.block_name(index)}.")
        tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.kept[index] = (tensors, header, record)
        if index == self.fails_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", [name for name in CASES if name != "rtn"])
def test_a_run_that_stops_half_way_goes_on_to_the_same_bits(method):
    whole, broken, resumed = load(), load(), load()
    report = quantize(whole, method)
    memory = Memory(fails_after=1)
    with pytest.raises(KeyboardInterrupt):
        quantize(broken, method, Workspace(device=GPU, finished=memory))
    memory.fails_after = None
    again = quantize(resumed, method, Workspace(device=GPU, finished=memory))
    assert again == report
    expected = weights(whole)
    for name, weight in weights(resumed).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("method", CASES)
def test_weights_on_the_cpu_are_rounded_as_well_as_weights_on_the_gpu(method):
    home, away = load(), load("cpu")
    expected, found = quantize(home, method), quantize(away, method)
    assert {tensor.device.type for tensor in away.host.state_dict().values()} == {"cpu"}
    for one, two in zip(found.modules, expected.modules, strict=True):
        # The angles of positions differ in their last bits, and solvers pass that on.
        assert two.relative_error == pytest.approx(one.relative_error, rel=0.05)
        assert dataclasses.replace(two, relative_error=one.relative_error) == one


def test_a_quantized_block_visits_a_device_whole_and_keeps_its_kinds():
    model = load("cpu")
    quantize(model, "quarot")
    block = model.blocks[0]
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    kinds = {name: type(parameter) for name, parameter in block.named_parameters()}
    with visiting(block, GPU):
        assert {tensor.device.type for tensor in block.state_dict().values()} == {"cuda"}
        grids = [part.grid for part in block.modules() if getattr(part, "grid", None) is not None]
        assert {grid.scales.device.type for grid in grids} == {"cuda"}
    after = block.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert kinds == {name: type(parameter) for name, parameter in block.named_parameters()}


def test_a_folder_quantized_with_weights_on_the_cpu_gives_one_model_on_both_devices(tmp_path):
    job = plan_job(
        model="llada-tiny", method="gptq", scheme="w4a16-g32", settings=["calibration.samples=8"]
    )
    folder = tmp_path / "quantized"
    run_job(job, folder, Machine(offload=True, dtype="float32"), BlockLines(io.StringIO()))
    here, there = (load_model(str(folder), device=one, dtype="float32") for one in ("cpu", "cuda"))
    ids = torch.randint(2, 90, (2, 48), generator=torch.Generator().manual_seed(0))
    expected, found = here.logits(ids), there.logits(ids.to(GPU)).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for one, two in zip(here.linears().values(), there.linears().values(), strict=True):
        assert torch.equal(one.weight, two.weight.cpu())
