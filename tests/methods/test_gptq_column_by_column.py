"""GPTQ against a plain reading of the paper: one column at a time, nothing stacked or delayed."""

import itertools

import pytest
import torch

from dllm_sweep.methods.gptq import quantize_weight
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.hessian import Hessian

SHAPES = ((48, 64), (96, 32))


def scale_and_zero(weight, bits, symmetric):
    low = weight.amin(1).clamp(max=0)
    high = weight.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / (2**bits - 1)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else torch.round(-low / scale)
    return scale, zero


def round_column(column, scale, zero, bits):
    return scale * ((torch.round(column / scale) + zero).clamp(0, 2**bits - 1) - zero)


def plain_gptq(weight, hessian, *, bits, group_size, symmetric, by_activation, static):
    left, hessian = weight.clone(), hessian.clone()
    size = group_size or weight.shape[1]
    dead = hessian.diagonal() == 0
    hessian[dead, dead] = 1
    left[:, dead] = 0
    source = left if group_size else weight
    fitted = [scale_and_zero(part, bits, symmetric) for part in source.split(size, dim=1)]
    order = torch.arange(len(dead))
    if by_activation:
        order = hessian.diagonal().argsort(descending=True)
        left, hessian = left[:, order], hessian[order][:, order]
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(len(dead))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True)
    rounded = torch.zeros_like(left)
    for i in range(len(dead)):
        if not static and i % size == 0:
            current = scale_and_zero(left[:, i : i + size], bits, symmetric)
        grid = fitted[order[i] // size] if static else current
        rounded[:, i] = round_column(left[:, i], *grid, bits)
        error = (left[:, i] - rounded[:, i]) / factor[i, i]
        left[:, i:] -= error[:, None] * factor[i, i:]
    return rounded[:, order.argsort()]


def layer(outputs, inputs, trouble=lambda x: None):
    """A weight, and the Hessian of correlated inputs with outlier channels and dead ones."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.eye(inputs) + torch.randn(inputs, inputs, generator=generator) / inputs**0.5
    x = torch.randn(8, 128, inputs, generator=generator) @ mix
    chosen = torch.randperm(inputs, generator=generator)
    x[..., chosen[:3]] *= 20
    x[..., chosen[3:5]] = 0
    trouble(x)
    return torch.randn(outputs, inputs, generator=generator), Hessian.over(x)


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("by_activation", [True, False])
@pytest.mark.parametrize("group_size", [None, 16, 32])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_blocks_give_the_weights_of_column_by_column(bits, group_size, by_activation, static):
    shares = []
    for (outputs, inputs), symmetric in itertools.product(SHAPES, (True, False)):
        weight, hessian = layer(outputs, inputs)
        grid = {"bits": bits, "group_size": group_size}
        expected = plain_gptq(
            weight,
            hessian.mean(),
            symmetric=symmetric,
            by_activation=by_activation,
            static=static or group_size is None,
            **grid,
        )
        found = quantize_weight(
            weight,
            hessian.mean(),
            family=GridFamily.SYMMETRIC_SHIFTED if symmetric else GridFamily.ASYMMETRIC,
            activation_order=by_activation,
            static_groups=static,
            # Grids fitted on the way see the weight as of the last block.
            block_size=group_size or 24,
            **grid,
        ).dequantized
        shares.append(torch.isclose(found, expected, rtol=1e-4, atol=1e-6).double().mean().item())
        ratio = hessian.error(weight, found) / hessian.error(weight, expected)
        assert ratio == pytest.approx(1, rel=0.005)
    # A rounding tie in one column may change the rest of its row.
    assert sum(shares) / len(shares) >= 0.995


def duplicated(x):
    x[..., 8:16] = x[..., 16:24]


def hardly_alive(x):
    x *= 1e-2


def few(x):
    x[1:] = 0


@pytest.mark.parametrize("trouble", [duplicated, hardly_alive, few])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("by_activation", [True, False])
def test_layers_that_make_trouble_come_out_the_same(trouble, by_activation, static):
    shares = []
    for bits, group_size in itertools.product((2, 3, 4, 8), (32, 64)):
        weight, hessian = layer(32, 128, trouble)
        options = {"bits": bits, "group_size": group_size}
        expected = plain_gptq(
            weight,
            hessian.mean(),
            symmetric=bits % 2 == 0,
            by_activation=by_activation,
            static=static,
            **options,
        )
        found = quantize_weight(
            weight,
            hessian.mean(),
            family=GridFamily.SYMMETRIC_SHIFTED if bits % 2 == 0 else GridFamily.ASYMMETRIC,
            activation_order=by_activation,
            static_groups=static,
            block_size=group_size,
            **options,
        ).dequantized
        shares.append(torch.isclose(found, expected, rtol=1e-4, atol=1e-6).double().mean().item())
    assert sum(shares) / len(shares) >= 0.995
