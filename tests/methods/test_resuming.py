"""A quantization that was stopped in mid-model goes on from there and gives the same bits."""

import pytest
import torch

from dllm_sweep.methods import build
from dllm_sweep.methods.base import BlockRecord, Workspace
from dllm_sweep.quant import artifact
from dllm_sweep.quant.attention import operand_settings
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.spec import QuantScheme

CASES = {
    "rtn": ("rtn", "w4a8-kv4", {}),
    "gptq": ("gptq", "w3a16-g8", {}),
    "gptq, scattered groups and rounded operands": (
        "gptq",
        "w3a8-g8-qkv",
        {"static_groups": False, "output_first": True, "skip_modules": ("*.0.mlp.up_proj",)},
    ),
    "gptq, all at once": ("gptq", "w3a16", {"true_sequential": False}),
    "awq": ("awq", "w3a16-g8", {"grid_points": 3, "clip_steps": 4}),
    "awq with gptq": ("awq", "w3a16-g8", {"grid_points": 3, "clip_steps": 4, "solver": "gptq"}),
    "smoothquant": ("smoothquant", "w4a4", {"groups": "all"}),
    "quarot": ("quarot", "w4a4-kv4", {"mse_clip": False}),
    "duquant with gptq": ("duquant", "w4a4", {"steps": 4, "solver": "gptq"}),
}


class Stopped(Exception):
    """Somebody pulled the plug."""


class Folder:
    """Finished blocks as files; the plug is pulled when block `stop` has been quantized."""

    def __init__(self, folder, stop=None):
        self.folder, self.stop = folder, stop
        self.restored, self.kept = [], []

    def restore(self, model, index):
        file = self.folder / str(index)
        if not file.exists():
            return None
        self.restored.append(index)
        modules, warnings = artifact.load_block(model, file)
        return BlockRecord(modules=modules, warnings=warnings)

    def keep(self, model, index, record):
        if index == self.stop:
            raise Stopped
        self.kept.append(index)
        told = {"modules": record.modules, "warnings": record.warnings}
        artifact.BlockContent.of(model, index, **told).write(self.folder / str(index))


def bits(model):
    """Every number in a quantized model, and how it rounds what it computes."""
    numbers = dict(model.host.state_dict())
    settings = {"operands": operand_settings(model)}
    for name, part in model.linears().items():
        if isinstance(part, QuantLinear):
            grid = part.grid
            numbers |= {f"{name} scales": grid.scales, f"{name} zeros": grid.zeros}
            settings[name] = (part.activation, type(part.transform), grid.bits, grid.lowest)
    return numbers, settings


@pytest.mark.parametrize("family", ["make_small_llada", "make_small_dream"])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_quantization_gives_the_bits_of_an_undisturbed_one(
    case, family, request, make_batches, tmp_path
):
    make, batches = request.getfixturevalue(family), make_batches(4, 2, padding=3)
    name, scheme, parameters = CASES[case]
    method, scheme = build(name, parameters), QuantScheme.parse(scheme)

    def quantized(finished):
        model = make(layers=2)
        report = method.quantize(
            model, scheme, batches, seed=3, workspace=Workspace(finished=finished)
        )
        return report, *bits(model)

    walks = name != "rtn"
    if walks:
        with pytest.raises(Stopped):
            quantized(Folder(tmp_path, stop=1))
    again = Folder(tmp_path)
    found, expected = quantized(again), quantized(None)
    assert (again.restored, again.kept) == (([0], [1]) if walks else ([], []))
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(tensor, expected[1][key]) for key, tensor in found[1].items())
    assert found[2] == expected[2]


def test_blocks_may_be_missing_anywhere(make_small_llada, make_batches, tmp_path):
    method, scheme = build("gptq"), QuantScheme.parse("w3a16")
    found = []
    for missing in ((), (3,), (0, 2), (0, 1)):
        model, folder = make_small_llada(layers=4), Folder(tmp_path)
        for index in missing:
            (tmp_path / str(index)).unlink()
        method.quantize(model, scheme, make_batches(), workspace=Workspace(finished=folder))
        found.append((bits(model)[0], folder.restored))
    assert [restored for _, restored in found] == [[], [0, 1, 2], [1, 3], [2, 3]]
    assert all(
        torch.equal(tensor, numbers[key])
        for numbers, _ in found[1:]
        for key, tensor in found[0][0].items()
    )
