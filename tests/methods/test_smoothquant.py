"""SmoothQuant against the authors' scales, and on models of both shapes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dllm_sweep.errors import InputError
from dllm_sweep.methods import build, quantize
from dllm_sweep.quant.input_statistics import input_statistics
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.quant.smoothing import smooth, smoothing_scales, weight_magnitude
from dllm_sweep.quant.transforms import Scaling
from dllm_sweep.spec import QuantScheme

DATA = Path(__file__).parents[1] / "data"
FAMILIES = ("make_small_llada", "make_small_dream")
IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("alpha", [0.5, 0.8])
def test_scales_are_those_of_the_authors_code(alpha):
    with np.load(DATA / "quantizers.npz") as weights, np.load(DATA / "scales.npz") as stored:
        weight, x = torch.from_numpy(weights["weight"]), torch.from_numpy(stored["inputs"])
        expected = torch.from_numpy(stored[f"smoothquant_scales_a{alpha}"])
    scales = smoothing_scales(x.abs().amax(0), weight.abs().amax(0), alpha)
    torch.testing.assert_close(scales, expected, rtol=1e-5, atol=0)


def test_all_consumers_of_an_input_count():
    first, second = torch.nn.Linear(3, 2), torch.nn.Linear(3, 4)
    first.weight.data[:], second.weight.data[:] = 1.0, 0.5
    second.weight.data[2, 1] = -7.0
    assert weight_magnitude([first, second]).tolist() == [1.0, 7.0, 1.0]


def test_dead_channels_and_zero_weights_stay_harmless():
    scales = smoothing_scales(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 0.0]), 0.5)
    assert scales[0] == 1
    assert scales[1].item() == pytest.approx(2 / 1e-5**0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("norms_only", [True, False])
@pytest.mark.parametrize("alpha", [0.3, 0.9])
def test_smoothing_does_not_change_the_function(family, norms_only, alpha, request, make_batches):
    make = request.getfixturevalue(family)
    plain, model = make(), make()
    statistics = input_statistics(model, make_batches())
    smooth(model, statistics, alpha=alpha, norms_only=norms_only, chosen=set(model.linears()))
    assert not torch.equal(
        model.blocks[0].input_layernorm.weight, plain.blocks[0].input_layernorm.weight
    )
    changed = not torch.equal(
        model.blocks[0].mlp.down_proj.weight, plain.blocks[0].mlp.down_proj.weight
    )
    assert changed is not norms_only
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_activation_maximum_moves_into_the_weights(make_small_llada, make_batches):
    model, batches = make_small_llada(), make_batches()
    block = model.blocks[0]
    block.input_layernorm.weight.data[3] *= 50
    before = input_statistics(model, batches)["model.layers.0.self_attn.q_proj"].magnitude
    smooth(
        model,
        input_statistics(model, batches),
        alpha=0.5,
        norms_only=True,
        chosen=set(model.linears()),
    )
    after = input_statistics(model, batches)["model.layers.0.self_attn.q_proj"].magnitude
    weights = weight_magnitude(
        [block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj]
    )
    torch.testing.assert_close(after, weights, rtol=1e-4, atol=1e-5)
    assert after.max() / after.median() < (before.max() / before.median()) / 3


def test_groups_without_a_chosen_linear_stay_as_they_are(make_small_llada, make_batches):
    plain, model = make_small_llada(), make_small_llada()
    quantize(
        model,
        method="smoothquant",
        scheme="w8a8",
        calibration=make_batches(),
        groups="all",
        modules=["*.q_proj"],
    )
    block, original = model.blocks[0], plain.blocks[0]
    assert torch.equal(
        block.post_attention_layernorm.weight, original.post_attention_layernorm.weight
    )
    assert not torch.equal(block.self_attn.v_proj.weight, original.self_attn.v_proj.weight)
    assert isinstance(block.self_attn.q_proj, QuantLinear)
    assert not isinstance(block.self_attn.v_proj, QuantLinear)


def test_under_grouped_queries_the_output_projections_input_is_divided_online(
    make_small_dream, make_batches
):
    model = make_small_dream()
    quantize(model, method="smoothquant", scheme="w8a8", calibration=make_batches(), groups="all")
    transform = model.blocks[0].self_attn.o_proj.transform
    assert isinstance(transform, Scaling)
    row = model.quantization_report.modules[3]
    assert row.module.endswith("o_proj")
    assert row.bits == 112 * 112 * 8 + 112 * 16 + 112 * 16  # weights, scales, the division


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_with_outliers_it_is_nearer_than_plain_rounding(family, solver, request, make_batches):
    make = request.getfixturevalue(family)
    plain, ours, nearest = make(), make(), make()
    for model in (plain, ours, nearest):
        for block in model.blocks:
            block.input_layernorm.weight.data[7] *= 30
            block.post_attention_layernorm.weight.data[2] *= 30
    batches = make_batches()
    quantize(ours, method="smoothquant", scheme="w8a8", calibration=batches, solver=solver)
    quantize(nearest, method="rtn", scheme="w8a8-sym")
    assert len(ours.quantization_report.modules) == 14
    expected = plain.logits(IDS)
    assert (ours.logits(IDS) - expected).norm() < (nearest.logits(IDS) - expected).norm()


def test_the_grid_is_the_authors_unless_the_scheme_says_otherwise(make_small_llada, make_batches):
    model = make_small_llada()
    quantize(model, method="smoothquant", scheme="w8a8", calibration=make_batches())
    assert all(row.symmetric for row in model.quantization_report.modules)
    weight = model.blocks[0].self_attn.q_proj.weight
    codes = weight / (weight.abs().amax(1, keepdim=True) / 127)
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("parameters", "scheme", "reason"),
    [
        ({}, "w4a16-g128", "use awq"),
        ({"solver": "gptq"}, "w16a8", "solver rtn"),
        ({}, "w16a16-kv8", "use awq"),
        ({}, "w16a16", "quantizes nothing"),
    ],
)
def test_schemes_it_cannot_do_are_refused(parameters, scheme, reason):
    assert reason in build("smoothquant", parameters).refusal(QuantScheme.parse(scheme))
    assert build("smoothquant").refusal(QuantScheme.parse("w16a8")) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", 1.5),
        ("groups", "some"),
        ("solver", "awq"),
        ("weight_clip", 0.0),
        ("activation_clip", 1.2),
        ("damping", 1.0),
    ],
)
def test_parameters_out_of_range_are_named(name, value):
    with pytest.raises(InputError, match=f"parameter {name}"):
        build("smoothquant", {name: value})


def test_a_clip_ratio_may_be_a_number_or_nothing_but_not_a_text():
    assert build("smoothquant", {"weight_clip": 1}).weight_clip == 1.0
    assert build("smoothquant", {"weight_clip": None}).weight_clip is None
    with pytest.raises(InputError, match="weight_clip of smoothquant: expected a number"):
        build("smoothquant", {"weight_clip": "tight"})
