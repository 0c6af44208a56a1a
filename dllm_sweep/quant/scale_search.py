"""AWQ's two searches (arXiv 2306.00978), for one weight or some that share an input.

The scale search protects the inputs that are large on average: for a ratio r the scale of input j
is mean|x_j|^r, centred so that the greatest and the least scale have product 1, and the ratio with
the least output error is kept. r = 0 is plain rounding, so the search never loses to it on the
text it sees. The clip search shrinks the range of each row and group of a weight to the bound with
the least error of that group's share of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.affine import GridFamily, fake_quantize, fit_grid, grouped

_LEAST_SCALE = 1e-4
_PRODUCTS_AT_ONCE = 2**26


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleSearch:
    """What the scale search found.

    Attributes:
        scales: (n,) float32, positive.
        ratio: The exponent they were made with.
        loss: Their loss.
        rounding_loss: The loss without scales.
    """

    scales: Tensor
    ratio: float
    loss: float
    rounding_loss: float


def scales_at(magnitude: Tensor, ratio: float) -> Tensor:
    """Give the centred scales (n,) float32 at one ratio.

    Inputs that are always zero have no say in the centre; in the authors' code they move it, and
    with it everybody's scale, by one factor. As there, a ratio above 0 gives them the least scale,
    so that weights nothing depends on do not widen the range of those beside them.

    Args:
        magnitude: (n,), the mean absolute value of each input.
        ratio: Exponent in [0, 1).
    """
    alive = magnitude > 0
    if not bool(alive.any()):
        return torch.ones_like(magnitude, dtype=torch.float32)
    scales = magnitude.float().pow(ratio).clamp(min=_LEAST_SCALE)
    return scales / (scales[alive].max() * scales[alive].min()).sqrt()


def search_scales(
    magnitude: Tensor, loss: Callable[[Tensor], float], *, grid_points: int = 20
) -> ScaleSearch:
    """Try the ratios 0, 1 / p, ..., (p - 1) / p and keep the first with the least loss.

    Args:
        magnitude: (n,), the mean absolute value of each input.
        loss: The output error with weights rounded under given scales (n,); a ratio whose loss is
            not finite is passed over.
        grid_points: The number p of ratios.

    Raises:
        QuantizationError: If the loss without scales is not finite.
    """
    ratios = [point / grid_points for point in range(grid_points)]
    losses = [loss(scales_at(magnitude, ratio)) for ratio in ratios]
    if not math.isfinite(losses[0]):
        raise QuantizationError(
            f"the output it is part of changes by {losses[0]} under rounding, which is no number"
            " to compare; do activations overflow? load the model in bfloat16 or float32"
        )
    finite = [point for point in range(grid_points) if math.isfinite(losses[point])]
    best = min(finite, key=losses.__getitem__)
    return ScaleSearch(
        scales=scales_at(magnitude, ratios[best]),
        ratio=ratios[best],
        loss=losses[best],
        rounding_loss=losses[0],
    )


def round_scaled(
    weight: Tensor, scales: Tensor, *, bits: int, group_size: int | None, family: GridFamily
) -> Tensor:
    """Round W diag(s) and take the scales out again: (m, n) float32, for W (m, n) and s (n,)."""
    rows = grouped(weight.float() * scales, group_size)
    grid = fit_grid(rows, bits=bits, family=family)
    return fake_quantize(rows, grid).reshape(weight.shape) / scales


def clip(weight: Tensor, bounds: Tensor) -> Tensor:
    """Clamp W (m, n) to bounds (m, G, 1), one for each row and run of n / G inputs; float32."""
    rows = weight.float().reshape(len(weight), bounds.shape[1], -1)
    return torch.minimum(torch.maximum(rows, -bounds), bounds).reshape(weight.shape)


def search_clip(
    weight: Tensor,
    inputs: Tensor,
    *,
    bits: int,
    group_size: int | None,
    family: GridFamily,
    steps: int = 20,
    max_shrink: float = 0.5,
) -> Tensor:
    """Find the bound of each row and group under which rounding changes the output least.

    The bounds tried are max|w| (1 - i / steps) for i from 0 to below max_shrink * steps; the error
    is the mean over tokens of (sum over the group of x (v - w))^2.

    Args:
        weight: (m, n).
        inputs: (T, n), what the linear reads.
        bits: 2 to 8.
        group_size: Inputs that share a grid; None is all.
        family: How a range becomes a grid.
        steps: Into how many parts the range is cut.
        max_shrink: By which share it shrinks at most.

    Returns:
        (m, G, 1) float32 bounds for `clip`.

    Raises:
        QuantizationError: If the group size does not divide n.
    """
    rows = grouped(weight.float(), group_size)
    x = inputs.float().reshape(len(inputs), rows.shape[1], -1).permute(1, 2, 0)
    candidates = [1 - i / steps for i in range(int(max_shrink * steps))] or [1.0]
    found = []
    at_once = max(1, _PRODUCTS_AT_ONCE // (x.shape[0] * x.shape[2]))
    for part in rows.split(at_once):
        whole = part.abs().amax(-1, keepdim=True)
        best, least = whole, torch.full_like(whole, torch.inf)
        for share in candidates:
            bound = whole * share
            clamped = torch.minimum(torch.maximum(part, -bound), bound)
            rounded = fake_quantize(clamped, fit_grid(clamped, bits=bits, family=family))
            error = _output_error(rounded - part, x)
            better = error < least
            best, least = torch.where(better, bound, best), torch.where(better, error, least)
        found.append(best)
    return torch.cat(found)


def _output_error(difference: Tensor, x: Tensor) -> Tensor:
    # (m, G, g) against (G, g, T): every group's share of the output, squared, mean over tokens.
    outputs = torch.bmm(difference.transpose(0, 1), x)
    return outputs.square().mean(-1).T.unsqueeze(-1)
