"""The pure function, against the authors' results and against what GPTQ promises."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods import gptq, rtn
from dllm_sweep.quant.affine import AffineGrid, GridFamily, quantize
from dllm_sweep.quant.hessian import Hessian

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "quantizers.json").read_text())


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "quantizers.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def options_of(case):
    family = GridFamily.ASYMMETRIC
    if case["symmetric"]:
        restricted = "quarot" in case["name"]
        family = GridFamily.SYMMETRIC_RESTRICTED if restricted else GridFamily.SYMMETRIC_SHIFTED
    return {
        "bits": case["bits"],
        "group_size": None if case["group"] == -1 else case["group"],
        "family": family,
        "mse_clip": case.get("mse_clip", False),
    }


def rounded_by_us(case, golden):
    if case["method"] == "rtn":
        return rtn.quantize_weight(golden["weight"], **options_of(case)).dequantized
    return gptq.quantize_weight(
        golden["weight"],
        golden["hessian"],
        damping=case.get("percdamp", 0.01),
        block_size=case.get("blocksize", 128),
        activation_order=case.get("actorder", False),
        static_groups=case.get("static_groups", False),
        **options_of(case),
    ).dequantized


def error(golden, rounded):
    difference = (golden["weight"] - rounded).double()
    return ((difference @ golden["hessian"].double()) * difference).sum().item()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_it_gives_what_the_authors_code_gives(case, golden):
    # Stored as each row's values and, for every weight, which of them it is.
    values, indices = golden[f"{case['name']}.values"], golden[f"{case['name']}.indices"]
    expected = values.gather(1, indices.long())
    got = rounded_by_us(case, golden)
    equal = torch.isclose(got, expected, rtol=1e-5, atol=1e-7).double().mean().item()
    assert equal >= (1.0 if case["method"] == "rtn" else 0.995)
    assert error(golden, got) == pytest.approx(case["hessian_error"], rel=0.005)


def layer(seed=0, outputs=32, inputs=64, tokens=512):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    x = torch.randn(tokens, inputs, generator=generator) @ mix
    x[:, 3] *= 8
    return torch.randn(outputs, inputs, generator=generator), Hessian.over(x)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("family", list(GridFamily))
@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("activation_order", [True, False])
def test_its_error_is_below_that_of_rounding_to_nearest(bits, family, group_size, activation_order):
    grid = {"bits": bits, "family": family, "group_size": group_size}
    ratios = []
    for seed in range(4):
        weight, hessian = layer(seed)
        ours = gptq.quantize_weight(
            weight, hessian.mean(), activation_order=activation_order, **grid
        )
        nearest = rtn.quantize_weight(weight, **grid)
        ratios.append(
            hessian.error(weight, ours.dequantized) / hessian.error(weight, nearest.dequantized)
        )
    assert max(ratios) <= 1.0
    assert sum(ratios) / len(ratios) <= 0.8


def test_more_bits_give_a_smaller_error():
    weight, hessian = layer()
    errors = [
        hessian.error(weight, gptq.quantize_weight(weight, hessian.mean(), bits=b).dequantized)
        for b in (8, 6, 4, 3, 2)
    ]
    assert errors == sorted(errors)


@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("activation_order", [True, False])
@pytest.mark.parametrize("family", list(GridFamily))
def test_every_weight_is_on_the_grid_that_is_returned(static_groups, activation_order, family):
    weight, hessian = layer()
    result = gptq.quantize_weight(
        weight,
        hessian.mean(),
        bits=3,
        group_size=16,
        family=family,
        static_groups=static_groups,
        activation_order=activation_order,
    )
    lowest = -4 if family is GridFamily.SYMMETRIC_RESTRICTED else 0
    grid = AffineGrid(
        scale=result.scales[:, result.group_of_input],
        zero=result.zeros[:, result.group_of_input],
        lowest=lowest,
        highest=lowest + 7,
    )
    again = grid.scale * (quantize(result.dequantized, grid) - grid.zero)
    torch.testing.assert_close(again, result.dequantized)
    assert result.has_contiguous_groups == (static_groups or not activation_order)
    assert sorted(result.permutation.tolist()) == list(range(64))


def test_activation_order_starts_with_the_greatest_input():
    weight, hessian = layer()
    result = gptq.quantize_weight(weight, hessian.mean(), bits=4)
    assert result.permutation[0] == 3
    in_order = gptq.quantize_weight(weight, hessian.mean(), bits=4, activation_order=False)
    assert in_order.permutation.tolist() == list(range(64))


def test_permuting_the_inputs_permutes_the_result():
    weight, hessian = layer()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
    plain = gptq.quantize_weight(weight, hessian.mean(), bits=4)
    permuted = gptq.quantize_weight(weight[:, order], hessian.mean()[order][:, order], bits=4)
    equal = torch.isclose(permuted.dequantized, plain.dequantized[:, order])
    assert equal.double().mean() >= 0.995


def test_stacked_layers_are_solved_as_if_apart():
    weight, hessian = layer(outputs=48)
    whole = gptq.quantize_weight(weight, hessian.mean(), bits=3, group_size=32).dequantized
    parts = [
        gptq.quantize_weight(part, hessian.mean(), bits=3, group_size=32).dequantized
        for part in weight.split(16)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("block_size", [1, 7, 64, 1000])
def test_the_block_size_changes_nothing_but_the_speed(block_size):
    weight, hessian = layer()
    expected = gptq.quantize_weight(weight, hessian.mean(), bits=4)
    got = gptq.quantize_weight(weight, hessian.mean(), bits=4, block_size=block_size)
    equal = torch.isclose(got.dequantized, expected.dequantized)
    assert equal.double().mean() >= 0.995


@pytest.mark.parametrize("group_size", [None, 16])
def test_inputs_that_are_always_zero_get_weight_zero(group_size):
    weight, hessian = layer()
    hessian.total[:, 10] = hessian.total[10] = 0
    result = gptq.quantize_weight(weight, hessian.mean(), bits=4, group_size=group_size)
    assert (result.dequantized[:, 10] == 0).all()
    assert torch.isfinite(result.dequantized).all()


def test_a_zero_row_stays_zero():
    weight, hessian = layer()
    weight[5] = 0
    for group_size in (None, 16):
        result = gptq.quantize_weight(weight, hessian.mean(), bits=3, group_size=group_size)
        assert (result.dequantized[5] == 0).all()


def test_the_scale_of_a_hessian_over_all_tokens_does_not_matter_even_with_dead_inputs():
    weight, hessian = layer()
    hessian.total[3] = hessian.total[:, 3] = 0
    once, often = (gptq.quantize_weight(weight, scale * hessian.total, bits=3) for scale in (1, 50))
    assert torch.isclose(once.dequantized, often.dequantized).double().mean() >= 0.995


def test_its_arguments_are_not_changed():
    weight, hessian = layer()
    weight.requires_grad_()
    matrix = hessian.mean()
    copies = weight.detach().clone(), matrix.clone()
    matrix_dead = matrix.clone()
    matrix_dead[0] = matrix_dead[:, 0] = 0
    gptq.quantize_weight(weight, matrix, bits=4)
    gptq.quantize_weight(weight, matrix_dead, bits=4)
    assert torch.equal(weight, copies[0])
    assert torch.equal(matrix, copies[1])
    assert matrix_dead[0, 0] == 0


def test_a_singular_hessian_gets_more_damping():
    weight, _ = layer()
    few = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    result = gptq.quantize_weight(weight, Hessian.over(few).mean(), bits=4, damping=0.0)
    assert result.damping > 0
    assert torch.isfinite(result.dequantized).all()
    enough = gptq.quantize_weight(weight, Hessian.over(few).mean(), bits=4, damping=0.01)
    assert enough.damping == 0.01


def test_a_hessian_that_no_damping_can_save_is_an_error():
    weight, hessian = layer()
    with pytest.raises(QuantizationError, match="even with damping"):
        gptq.quantize_weight(weight, -hessian.mean(), bits=4)
    with pytest.raises(QuantizationError, match="not finite"):
        gptq.quantize_weight(weight, hessian.mean() * torch.nan, bits=4)


def test_tokens_count_the_same_however_they_are_batched():
    x = torch.randn(100, 16)
    whole, parts = Hessian.over(x), Hessian.over(x[:7])
    parts.add(x[7:30])
    parts.add(x[30:])
    torch.testing.assert_close(parts.mean(), whole.mean())
    torch.testing.assert_close(whole.mean(), 2 / 100 * x.T @ x)


def test_the_error_is_that_of_the_outputs():
    weight, _ = layer()
    x = torch.randn(100, 64)
    rounded = weight.round()
    expected = 2 / 100 * (x @ (weight - rounded).T).norm() ** 2
    assert Hessian.over(x).error(weight, rounded) == pytest.approx(expected.item(), rel=1e-4)
