"""Which modules and operands each preset's methods really quantize, on both shapes of model."""

import pytest

from dllm_sweep import presets
from dllm_sweep.methods import build
from dllm_sweep.quant.attention import operand_settings
from dllm_sweep.quant.linear import QuantLinear

BITS, GROUP = 4, 8
"""Groups of 8 divide the inputs of both small models."""
ATTENTION_INPUTS = {f"self_attn.{one}_proj" for one in "qkv"}
EVERY = ATTENTION_INPUTS | {
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
}
WEIGHT_ONLY = ("gptq", "awq")
QUICK = {
    "awq": {"grid_points": 2, "clip_steps": 2},
    "quarot": {"mse_clip": False},
    "duquant": {"steps": 2},
}
"""Shorter searches: they do not decide what is quantized."""
OPERANDS = {
    ("paper", "quarot"): (16, 4, 4, False, "head", 0.95, None, True),
    ("paper", "duquant"): (4, 4, 4, False, "head", 1.0, None, True),
    ("qdlm-code", "smoothquant"): (4, 4, 4, False, "head", 1.0, None, False),
    ("qdlm-code", "quarot"): (16, 4, 4, True, "token", 1.0, None, True),
    ("qdlm-code", "duquant"): (4, 4, 4, False, "head", 0.9, 1.0, True),
}
"""Bits of queries, keys and values, symmetry, what shares a grid, clip ratios of all and of values,
rotation; where nothing stands, attention rounds nothing."""


@pytest.fixture(params=["make_small_llada", "make_small_dream"])
def make(request):
    return request.getfixturevalue(request.param)


def rounded_linears(model, group):
    """The linears of the only block in which no group has more values than codes."""
    prefix = f"{model.block_name(0)}."
    return {
        name.removeprefix(prefix)
        for name, linear in model.linears().items()
        if isinstance(linear, QuantLinear)
        and all(len(part.unique()) <= 2**BITS for part in linear.weight[0].split(group or 10**9))
    }


def rounded_operands(model):
    return [
        (
            one.query_bits,
            one.key_bits,
            one.value_bits,
            one.symmetric,
            one.grids,
            one.clip_ratio,
            one.value_clip_ratio,
            one.rotate,
        )
        for one in operand_settings(model).values()
    ]


@pytest.mark.parametrize("preset", ["paper", "qdlm-code"])
@pytest.mark.parametrize("method", ["gptq", "awq", "smoothquant", "quarot", "duquant"])
def test_what_is_really_quantized(preset, method, make, make_batches):
    model, untouched = make(layers=1), make(layers=1).linears()
    family = model.family.name
    settings = presets.load(preset).method(method, family)
    weight_only = method in WEIGHT_ONLY
    scheme = settings.scheme(f"w{BITS}a16-g{GROUP}" if weight_only else f"w{BITS}a{BITS}")
    built = build(method, dict(settings.parameters) | QUICK.get(method, {}))
    assert built.refusal(scheme) is None
    report = built.quantize(model, scheme, make_batches(8))

    left_out = (preset, method, family) == ("qdlm-code", "gptq", "llada")
    expected = EVERY - ATTENTION_INPUTS if left_out else EVERY
    assert rounded_linears(model, scheme.group_size) == expected
    prefix = f"{model.block_name(0)}."
    assert {row.module.removeprefix(prefix) for row in report.modules if row.weights} == expected
    for name in EVERY - expected:
        assert model.linears()[prefix + name].weight.equal(untouched[prefix + name].weight)
    found = OPERANDS.get((preset, method))
    assert rounded_operands(model) == ([] if found is None else [found])
    symmetric = method == "quarot" or (preset, method) == ("qdlm-code", "gptq")
    assert {row.symmetric for row in report.modules if row.weights} == {symmetric}
