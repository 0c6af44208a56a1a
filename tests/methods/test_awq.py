"""AWQ against the authors' results, and on models of both shapes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import InputError, QuantizationError
from dllm_sweep.methods import awq, build, quantize, rtn
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.capture import capture_first_block
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.quant.scale_search import (
    clip,
    round_scaled,
    scales_at,
    search_clip,
    search_scales,
)
from dllm_sweep.spec import QuantScheme

DATA = Path(__file__).parents[1] / "data"
CASES = {case["name"]: case for case in json.loads((DATA / "scales.json").read_text())}
FAMILIES = ("make_small_llada", "make_small_dream")
IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
FAST = {"grid_points": 4, "clip_steps": 4}


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "quantizers.npz") as weights, np.load(DATA / "scales.npz") as scales:
        stored = {"weight": weights["weight"], **scales}
    return {name: torch.from_numpy(array) for name, array in stored.items()}


def grid(bits, group_size=128):
    return {"bits": bits, "group_size": group_size, "family": GridFamily.ASYMMETRIC}


def relative_error(golden, rounded):
    weight, x = golden["weight"], golden["inputs"]
    return ((x @ (rounded - weight).T).norm() / (x @ weight.T).norm()).item()


@pytest.mark.parametrize("bits", [3, 4])
def test_scales_and_losses_are_those_of_the_authors_code(bits, golden):
    weight, x = golden["weight"], golden["inputs"]

    def loss(scales):
        return relative_error(golden, round_scaled(weight, scales, **grid(bits)))

    found = search_scales(x.abs().mean(0), loss)
    case = CASES[f"awq_scale_w{bits}"]
    torch.testing.assert_close(found.scales, golden[f"awq_scales_w{bits}"], rtol=1e-4, atol=0)
    assert found.loss == pytest.approx(case["loss"], rel=1e-3)
    assert found.rounding_loss == pytest.approx(case["loss_rtn"], rel=1e-3)


@pytest.mark.parametrize("bits", [3, 4])
def test_clipping_costs_what_the_authors_code_does(bits, golden):
    weight, x = golden["weight"], golden["inputs"]
    clipped = clip(weight, search_clip(weight, x[::2], **grid(bits)))
    error = relative_error(golden, rtn.quantize_weight(clipped, **grid(bits)).dequantized)
    case = CASES[f"awq_clip_w{bits}"]
    assert error == pytest.approx(case["relative_output_error"], rel=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 8]),
    family=st.sampled_from(list(GridFamily)),
)
def test_clipping_never_raises_a_groups_error(seed, bits, group_size, family):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 24, generator=generator)
    x = torch.randn(40, 24, generator=generator)
    size = group_size or 24
    options = {"bits": bits, "group_size": group_size, "family": family}

    def errors(given):
        change = rtn.quantize_weight(given, **options).dequantized - weight
        groups = zip(change.split(size, 1), x.split(size, 1), strict=True)
        return torch.stack([(part @ inputs.T).square().mean(1) for part, inputs in groups])

    clipped = clip(weight, search_clip(weight, x, **options))
    assert (errors(clipped) <= errors(weight) * 1.001 + 1e-9).all()


def test_scales_are_centred_and_dead_inputs_have_no_say():
    magnitude = torch.tensor([0.1, 4.0, 0.0, 1.0])
    scales = scales_at(magnitude, 0.5)
    alive = scales[[0, 1, 3]]
    assert (alive.max() * alive.min()).item() == pytest.approx(1.0)
    torch.testing.assert_close(scales[1] / scales[0], torch.tensor(40.0).sqrt())
    assert 0 < scales[2] < 1e-3
    assert (scales_at(torch.zeros(4), 0.5) == 1).all()
    assert (scales_at(magnitude, 0.0) == 1).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_scaling_alone_does_not_change_the_function(family, request, make_batches):
    make = request.getfixturevalue(family)
    plain, model = make(), make()
    search = awq._Search(build("awq", FAST), model, frozenset(model.linears()), grid(3, None))
    search.scale(0, capture_first_block(model, make_batches()))
    assert not torch.equal(
        model.blocks[0].input_layernorm.weight, plain.blocks[0].input_layernorm.weight
    )
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_is_quantized_and_the_result_is_nearer_than_rounding(
    family, request, make_batches
):
    make = request.getfixturevalue(family)
    plain, ours, nearest = make(), make(), make()
    for model in (ours, nearest):  # one channel of every norm is an outlier
        for block in model.blocks:
            block.input_layernorm.weight.data[5] *= 16
            block.self_attn.q_proj.weight.data[:, 5] /= 16
            block.self_attn.k_proj.weight.data[:, 5] /= 16
            block.self_attn.v_proj.weight.data[:, 5] /= 16
    quantize(ours, method="awq", scheme="w3a16", calibration=make_batches(), **FAST)
    quantize(nearest, method="rtn", scheme="w3a16")
    assert all(isinstance(part, QuantLinear) for part in ours.linears().values())
    assert len(ours.quantization_report.modules) == 14
    expected = plain.logits(IDS)
    assert (ours.logits(IDS) - expected).norm() < (nearest.logits(IDS) - expected).norm()


def test_under_grouped_queries_the_output_projection_is_not_scaled(make_small_dream, make_batches):
    plain, model = make_small_dream(layers=1), make_small_dream(layers=1)
    quantize(
        model,
        method="awq",
        scheme="w3a16",
        calibration=make_batches(),
        modules=["*.o_proj"],
        search_clip=False,
    )
    nearest = rtn.quantize_weight(plain.blocks[0].self_attn.o_proj.weight, bits=3).dequantized
    assert torch.equal(model.blocks[0].self_attn.o_proj.weight, nearest)
    assert torch.equal(
        model.blocks[0].self_attn.v_proj.weight, plain.blocks[0].self_attn.v_proj.weight
    )


def test_padding_has_no_say(make_small_llada, make_batches):
    first, second = make_small_llada(), make_small_llada()
    batches = make_batches(padding=6)
    other = tuple(
        type(b)(
            input_ids=torch.where(b.attention_mask == 0, 5, b.input_ids),
            attention_mask=b.attention_mask,
            masked=b.masked,
        )
        for b in batches
    )
    quantize(first, method="awq", scheme="w3a16-g16", calibration=batches, **FAST)
    quantize(second, method="awq", scheme="w3a16-g16", calibration=other, **FAST)
    for name, part in first.linears().items():
        assert torch.equal(part.weight, second.linears()[name].weight)


@pytest.mark.parametrize("solver", ["rtn", "gptq"])
def test_a_token_that_counts_twice_is_a_token_seen_twice(solver, make_small_llada, make_batches):
    first, second = make_small_llada(layers=1), make_small_llada(layers=1)
    (batch,) = make_batches(count=6, batch_size=6)
    weights = torch.ones_like(batch.input_ids, dtype=torch.float32)
    weights[:2] = 2
    weights[2] = 0
    rows = torch.tensor([0, 0, 1, 1, 3, 4, 5])
    twice = replace(batch, input_ids=batch.input_ids[rows], masked=batch.masked[rows])
    for model, given_batch in ((first, replace(batch, weights=weights)), (second, twice)):
        method = build("awq", {**FAST, "solver": solver, "clip_tokens": 1000})
        method.quantize(model, QuantScheme.parse("w3a16-g16"), [given_batch])
    for name, part in first.linears().items():
        step = part.grid.scales.max()
        changed = (part.weight - second.linears()[name].weight).abs() > step / 2
        assert changed.double().mean() <= 0.005
    plain = make_small_llada(layers=1)
    quantize(plain, method="awq", scheme="w3a16-g16", calibration=[batch], solver=solver, **FAST)
    assert any(
        not torch.equal(part.weight, plain.linears()[name].weight)
        for name, part in first.linears().items()
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_how_the_text_is_cut_moves_next_to_no_code(family, request, make_batches):
    models = [request.getfixturevalue(family)() for _ in range(3)]
    for model, size in zip(models, (4, 4, 7), strict=True):
        batches = make_batches(16, size, padding=5)
        quantize(model, method="awq", scheme="w4a16-g8", calibration=batches, **FAST)
    for name, part in models[0].linears().items():
        again, other = (model.linears()[name] for model in models[1:])
        assert torch.equal(part.weight, again.weight)
        step = part.grid.scales.repeat_interleave(8, 1)
        assert ((part.weight - other.weight).abs() > step / 2).double().mean() <= 0.005


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_finite_weights_on_a_symmetric_grid(
    dtype, make_small_dream, make_batches
):
    model = make_small_dream(dtype=dtype)
    quantize(model, method="awq", scheme="w4a16-g8-sym", calibration=make_batches(), **FAST)
    for row, part in zip(model.quantization_report.modules, model.linears().values(), strict=True):
        assert row.symmetric
        assert row.bits == part.weight.numel() * (4 + 16 / 8)  # no zero points
        assert (part.grid.zeros == 8).all()
        assert part.grid.lowest == 0
        assert torch.isfinite(part.weight).all()


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("w4a4", "weights only"),
        ("w16a8", "awq quantizes weights"),
        ("w4a16-qkv", "not quantized"),
        ("w16a16", "awq quantizes weights"),
    ],
)
def test_schemes_it_cannot_do_are_refused(scheme, reason):
    assert reason in build("awq").refusal(QuantScheme.parse(scheme))
    assert build("awq").refusal(QuantScheme.parse("w3a16-g128-sym")) is None


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"damping": 0.1}, "solver gptq"),
        ({"activation_order": False}, "solver gptq"),
        ({"search_scale": False, "search_on": "block"}, "search_scale to true"),
        ({"search_scale": False, "search_clip": False}, "use the method rtn"),
        ({"search_scale": False, "solver": "gptq"}, "use the method gptq"),
    ],
)
def test_parameters_that_nothing_reads_are_refused_when_planning(parameters, reason):
    scheme = QuantScheme.parse("w4a16")
    assert reason in build("awq", parameters).refusal(scheme)
    read = {"solver": "gptq", "damping": 0.1, "activation_order": False, "search_clip": False}
    assert build("awq", read).refusal(scheme) is None


def test_parameters_out_of_range_and_groups_that_do_not_fit_are_named(small_llada, make_batches):
    for wrong in (
        {"grid_points": 0},
        {"max_shrink": 1.0},
        {"clip_steps": 0},
        {"clip_tokens": 0},
        {"solver": "sparse"},
        {"search_on": "model"},
        {"damping": 1.0},
    ):
        with pytest.raises(InputError, match=f"parameter {next(iter(wrong))}"):
            build("awq", wrong)
    with pytest.raises(QuantizationError, match=r"layers\.0\.self_attn\.q_proj.*24 does not"):
        quantize(small_llada, method="awq", scheme="w4a16-g24", calibration=make_batches())
    with pytest.raises(QuantizationError, match="needs calibration text"):
        build("awq").quantize(small_llada, QuantScheme.parse("w4a16"), ())
