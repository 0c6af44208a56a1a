"""What AWQ has scaled and clipped, rounded by GPTQ; and where the two take their inputs from."""

import pytest
import torch

from dllm_sweep.methods import awq, build, quantize
from dllm_sweep.methods.base import Workspace
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.capture import capture_first_block
from dllm_sweep.quant.changes import collect, put
from dllm_sweep.quant.hessian import collect_hessians
from dllm_sweep.spec import QuantScheme

FAMILIES = ("make_small_llada", "make_small_dream")
FAST = {"grid_points": 4, "clip_steps": 4}
SCHEME = QuantScheme.parse("w3a16-g8")


@pytest.fixture(params=FAMILIES)
def make(request):
    return request.getfixturevalue(request.param)


class Kept:
    """Blocks as they were finished, in memory; the work breaks off before block `stop`."""

    def __init__(self, stop=None):
        self.blocks, self.stop = {}, stop

    def restore(self, model, index):
        if index == self.stop:
            raise KeyboardInterrupt
        if index not in self.blocks:
            return None
        tensors, header, record = self.blocks[index]
        put(model, tensors, header, file="memory")
        return record

    def keep(self, model, index, record):
        prefix = f"{model.block_name(index)}."
        tensors, header = collect(model, prefix)
        self.blocks[index] = {k: t.clone() for k, t in tensors.items()}, header, record


def same_weights(first, second):
    pairs = zip(first.host.named_parameters(), second.host.named_parameters(), strict=True)
    linears = zip(first.linears().values(), second.linears().values(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs) and all(
        torch.equal(a.weight, b.weight) for a, b in linears
    )


@pytest.mark.parametrize("group", range(4))
def test_to_the_same_clipped_ranges_gptq_never_loses_to_rounding(group, make, make_batches):
    batches, names = make_batches(), make().family.linear_groups[group].linears
    chosen = [f"*layers.0.{name}" for name in names]
    scaled, rounded, solved = make(), make(), make()
    for model, solver in ((rounded, "rtn"), (solved, "gptq")):
        options = {**FAST, "solver": solver, "search_clip": True, "modules": chosen}
        build("awq", options).quantize(model, SCHEME, batches)
    full_names = frozenset(f"model.layers.0.{name}" for name in names)
    grid = {"bits": 3, "group_size": 8, "family": GridFamily.ASYMMETRIC}
    inputs = capture_first_block(scaled, batches)
    awq._Search(build("awq", FAST), scaled, full_names, grid).scale(0, inputs)
    hessian = collect_hessians(scaled.blocks[0], names[:1], inputs)[names[0]]
    for name in names:
        target, plain, ours = (
            one.blocks[0].get_submodule(name) for one in (scaled, rounded, solved)
        )
        assert torch.equal(plain.grid.scales, ours.grid.scales)
        errors = [hessian.error(target.weight, one.weight) for one in (plain, ours)]
        assert errors[1] < errors[0]


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_the_searches_see_full_precision_and_gptq_the_quantized_blocks_before(
    solver, make_small_llada, make_batches
):
    models = make_small_llada(), make_small_llada()
    for model, modules in zip(models, (["*"], ["*layers.1.*"]), strict=True):
        method = build("awq", {**FAST, "solver": solver, "modules": modules})
        method.quantize(model, SCHEME, make_batches())
    first, second = (model.blocks[1] for model in models)
    assert torch.equal(first.input_layernorm.weight, second.input_layernorm.weight)
    same = torch.equal(first.self_attn.q_proj.weight, second.self_attn.q_proj.weight)
    assert same is (solver == "rtn")


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_a_crash_between_blocks_changes_no_bit_of_the_result(solver, make, make_batches):
    method, batches = build("awq", {**FAST, "solver": solver}), make_batches(8, padding=6)
    whole, crashed, resumed = make(layers=3), make(layers=3), make(layers=3)
    report = method.quantize(whole, SCHEME, batches)
    kept = Kept(stop=1)
    with pytest.raises(KeyboardInterrupt):
        method.quantize(crashed, SCHEME, batches, workspace=Workspace(finished=kept))
    kept.stop = None
    again = method.quantize(resumed, SCHEME, batches, workspace=Workspace(finished=kept))
    assert same_weights(whole, resumed)
    assert again == report


def test_few_tokens_are_told_where_gptq_reads_them(make_small_dream, make_batches):
    for solver, told in (("rtn", 0), ("gptq", 1)):
        model = make_small_dream()
        quantize(
            model,
            method="awq",
            scheme="w4a16-g8",
            calibration=make_batches(8),
            solver=solver,
            **FAST,
        )
        warnings = model.quantization_report.warnings
        assert bool(warnings) is bool(told)
        assert all("256 calibration tokens" in text for text in warnings)
