import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.affine import (
    GridFamily,
    dequantize,
    fake_quantize,
    fit_grid,
    grouped,
    quantize,
    storage_bits,
)

FAMILIES = tuple(GridFamily)
BITS = (2, 3, 4, 5, 6, 7, 8)


def rows(seed=0, count=16, size=64):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, size, generator=generator)
    values[0] = values[0].abs() + 1
    values[1] = -values[1].abs() - 1
    return values


@pytest.mark.parametrize("mse_clip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", BITS)
def test_codes_are_integers_inside_the_grid(bits, family, mse_clip):
    values = rows()
    grid = fit_grid(values, bits=bits, family=family, mse_clip=mse_clip)
    codes = quantize(values, grid)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= grid.lowest
    assert codes.max() <= grid.highest
    assert grid.highest - grid.lowest == 2**bits - 1
    assert all(len(row.unique()) <= 2**bits for row in dequantize(codes, grid))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    family=st.sampled_from(FAMILIES),
    seed=st.integers(0, 10**6),
    size=st.integers(1, 40),
)
def test_rounding_again_on_the_same_grid_changes_nothing(bits, family, seed, size):
    values = rows(seed, size=size)
    grid = fit_grid(values, bits=bits, family=family)
    once = fake_quantize(values, grid)
    assert torch.equal(fake_quantize(once, grid), once)


@pytest.mark.parametrize("family", [GridFamily.ASYMMETRIC, GridFamily.SYMMETRIC_RESTRICTED])
@pytest.mark.parametrize("bits", BITS)
def test_fitting_again_to_rounded_values_gives_the_same_values(bits, family):
    once = fake_quantize(rows(), fit_grid(rows(), bits=bits, family=family))
    again = fake_quantize(once, fit_grid(once, bits=bits, family=family))
    torch.testing.assert_close(again, once, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mse_clip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_zero_stays_zero_even_far_from_the_other_values(family, mse_clip):
    values = rows()
    values[:, 3] = 0
    grid = fit_grid(values, bits=3, family=family, mse_clip=mse_clip)
    assert (fake_quantize(values, grid)[:, 3] == 0).all()


@pytest.mark.parametrize("mse_clip", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [0.0, 1e-45, 2.5, -2.5])
def test_a_constant_row_is_finite(value, family, mse_clip):
    values = torch.full((2, 8), value)
    rounded = fake_quantize(values, fit_grid(values, bits=4, family=family, mse_clip=mse_clip))
    assert torch.isfinite(rounded).all()
    assert (rounded - values).abs().max() <= abs(value) / 7 + 1e-44


@pytest.mark.parametrize("family", FAMILIES)
def test_more_bits_never_make_it_worse(family):
    errors = [
        (fake_quantize(rows(), fit_grid(rows(), bits=bits, family=family)) - rows()).norm()
        for bits in BITS
    ]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_clip_search_never_raises_the_error_it_minimizes(bits, family):
    def error(mse_clip):
        grid = fit_grid(rows(), bits=bits, family=family, mse_clip=mse_clip)
        return (fake_quantize(rows(), grid) - rows()).abs().pow(2.4).sum(-1)

    assert (error(True) <= error(False)).all()
    assert (error(True) < error(False)).any()


def test_the_families_have_the_scales_of_their_papers():
    values = torch.tensor([[-1.0, 0.5, 3.0]])
    scale = {f: fit_grid(values, bits=4, family=f).scale.item() for f in FAMILIES}
    assert scale[GridFamily.ASYMMETRIC] == pytest.approx(4 / 15)
    assert scale[GridFamily.SYMMETRIC_SHIFTED] == pytest.approx(6 / 15)
    assert scale[GridFamily.SYMMETRIC_RESTRICTED] == pytest.approx(3 / 7)


def test_the_shifted_family_clips_the_greatest_value_by_half_a_step():
    values = torch.tensor([[-1.0, 1.0]])
    grid = fit_grid(values, bits=4, family=GridFamily.SYMMETRIC_SHIFTED)
    assert fake_quantize(values, grid)[0, 1].item() == pytest.approx(14 / 15)


def test_a_row_without_negative_values_can_use_the_whole_symmetric_grid():
    values = torch.rand(1, 200) + 0.01
    grid = fit_grid(values, bits=4, family=GridFamily.SYMMETRIC_SHIFTED)
    assert (fake_quantize(values, grid) - values).abs().max() <= grid.scale * 0.5001


def test_groups_are_contiguous_inputs_of_one_output():
    weight = torch.arange(24.0).reshape(2, 12)
    assert grouped(weight, 4).shape == (2, 3, 4)
    assert grouped(weight, 4)[1, 2].tolist() == [20, 21, 22, 23]
    assert grouped(weight, None).shape == (2, 1, 12)


def test_a_group_size_that_does_not_divide_is_refused():
    with pytest.raises(QuantizationError, match="group size 5 does not divide its 12 inputs"):
        grouped(torch.zeros(2, 12), 5)


def test_four_bits_in_groups_of_128_cost_4_16_bits_a_weight():
    size = {"weights": 1280, "bits": 4, "grids": 10}
    asymmetric = storage_bits(family=GridFamily.ASYMMETRIC, **size)
    symmetric = storage_bits(family=GridFamily.SYMMETRIC_SHIFTED, **size)
    assert asymmetric / 1280 == pytest.approx(4.15625)
    assert symmetric / 1280 == pytest.approx(4.125)
