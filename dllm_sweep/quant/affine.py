"""Uniform quantization grids, as pure functions on tensors.

A value x has the code q = clip(round(x / s) + z, lowest, highest) and stands for s (q - z), with a
positive scale s and the code z of zero. Rounding is half to even. Zero is always on the grid, and
a row of zeros is safe: it stays zero.

Three families are in use, and two of them are both called "symmetric" in the literature:

    asymmetric             s = (max - min) / (2^b - 1)       codes 0 .. 2^b - 1, z = round(-min / s)
    symmetric_shifted      s = 2 max|x| / (2^b - 1)          codes 0 .. 2^b - 1, z = 2^(b-1)
    symmetric_restricted   s = max|x| / (2^(b-1) - 1)        codes -2^(b-1) .. 2^(b-1) - 1, z = 0

The first two are GPTQ's (arXiv 2210.17323, authors' code), the last is that of SmoothQuant
(arXiv 2211.10438) and QuaRot (arXiv 2404.00456). In the shifted family the greatest positive
value lies half a step outside the grid and is clipped. Unlike GPTQ's code, which starts the range
of a row without negative values at 0, the symmetric families here always span -max|x| .. max|x|.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

from dllm_sweep.errors import QuantizationError

SCALE_BITS = 16
"""A stored scale is a half-precision number."""
MSE_CLIP_CANDIDATES = 80
MSE_CLIP_STEPS = 100
MSE_CLIP_NORM = 2.4


class GridFamily(StrEnum):
    """How a range of values becomes a scale and a zero; see the module's table."""

    ASYMMETRIC = "asymmetric"
    SYMMETRIC_SHIFTED = "symmetric_shifted"
    SYMMETRIC_RESTRICTED = "symmetric_restricted"

    @property
    def is_symmetric(self) -> bool:
        """Whether the zero is fixed and needs no storage."""
        return self is not GridFamily.ASYMMETRIC

    def lowest(self, bits: int) -> int:
        """Give the least code."""
        return -(2 ** (bits - 1)) if self is GridFamily.SYMMETRIC_RESTRICTED else 0


def weight_family(symmetric: bool) -> GridFamily:
    """Give the grid family that the weight-only methods use: GPTQ's two."""
    return GridFamily.SYMMETRIC_SHIFTED if symmetric else GridFamily.ASYMMETRIC


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineGrid:
    """One grid for each row of values.

    Attributes:
        scale: (..., 1), positive, in the values' dtype.
        zero: (..., 1), the code of 0, integers in the values' dtype.
        lowest: Least code.
        highest: Greatest code.
    """

    scale: Tensor
    zero: Tensor
    lowest: int
    highest: int


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightGrid:
    """The grids of a rounded weight (m, n); with them it is known by its integer codes alone.

    Kept in float32 whatever the weight's own type: rounded scales would give another weight.

    Attributes:
        scales: (m, G) float32, one for each output and group; (1, 1) if all share one.
        zeros: The codes of 0 in float32, in the shape of `scales`. The package's own are integers;
            a weight is `scales * (codes - zeros)` whatever they are.
        bits: Of a code, 2 to 8.
        lowest: Least code; the greatest is `lowest + 2**bits - 1`.
        group_of_input: (n,) int64, the group of each input; None if the G groups are runs of n / G
            neighbours.
    """

    scales: Tensor
    zeros: Tensor
    bits: int
    lowest: int
    group_of_input: Tensor | None = None

    @classmethod
    def of(cls, grid: AffineGrid) -> WeightGrid:
        """Take the grids of contiguous groups, fitted to a weight viewed as (m, G, n / G)."""
        return cls(
            scales=grid.scale.squeeze(-1).float(),
            zeros=grid.zero.squeeze(-1).float(),
            bits=(grid.highest - grid.lowest).bit_length(),
            lowest=grid.lowest,
        )

    @property
    def highest(self) -> int:
        """Greatest code."""
        greatest: int = self.lowest + 2**self.bits - 1
        return greatest

    def zeros_are_codes(self) -> bool:
        """Whether every zero is a code itself, and so can be stored as one."""
        low, high = (float(zero) for zero in self.zeros.aminmax())
        integers = bool((self.zeros == self.zeros.round()).all())
        return integers and low >= self.lowest and high <= self.highest

    def split(self, sizes: Sequence[int]) -> tuple[WeightGrid, ...]:
        """Give the grids of parts of the weight, cut along its outputs as `Tensor.split` does."""
        if len(self.scales) == 1:
            return (self,) * len(sizes)
        parts = zip(self.scales.split(list(sizes)), self.zeros.split(list(sizes)), strict=True)
        return tuple(replace(self, scales=s.clone(), zeros=z.clone()) for s, z in parts)

    def to(self, device: torch.device) -> WeightGrid:
        """Give the same grids on another device."""
        if self.scales.device == device:
            return self
        index = None if self.group_of_input is None else self.group_of_input.to(device)
        scales, zeros = self.scales.to(device), self.zeros.to(device)
        return replace(self, scales=scales, zeros=zeros, group_of_input=index)


def fit_grid(
    values: Tensor,
    *,
    bits: int,
    family: GridFamily,
    mse_clip: bool = False,
    clip_ratio: float = 1.0,
) -> AffineGrid:
    """Fit one grid to each row of values.

    Args:
        values: (..., n) floating point; each row along the last dimension gets its own grid.
        bits: 2 to 8.
        family: How the range becomes a grid.
        mse_clip: Shrink each row's range by the factor 1, 0.99, ..., 0.21 with the least sum of
            |error|^2.4 (the search of GPTQ's code).
        clip_ratio: Share of the range that the grid spans, in (0, 1]; the search starts there.
    """
    low = values.amin(-1, keepdim=True).clamp(max=0)
    high = values.amax(-1, keepdim=True).clamp(min=0)
    if family.is_symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = (low == 0) & (high == 0)
    low, high = low.masked_fill(empty, -1) * clip_ratio, high.masked_fill(empty, 1) * clip_ratio
    if not mse_clip:
        return _grid_of_range(low, high, bits, family)
    return _grid_of_range(*_search_range(values, low, high, bits, family), bits, family)


def quantize(values: Tensor, grid: AffineGrid) -> Tensor:
    """Give the codes (..., n) of `values` (..., n), as integers in the values' dtype."""
    return (torch.round(values / grid.scale) + grid.zero).clamp(grid.lowest, grid.highest)


def dequantize(codes: Tensor, grid: AffineGrid) -> Tensor:
    """Give the values (..., n) that `codes` (..., n) stand for."""
    return grid.scale * (codes - grid.zero)


def fake_quantize(values: Tensor, grid: AffineGrid) -> Tensor:
    """Round `values` (..., n) to their grid; same shape and dtype."""
    return dequantize(quantize(values, grid), grid)


def grouped(weight: Tensor, group_size: int | None) -> Tensor:
    """View a weight (m, n) as (m, n / g, g): one row for each contiguous group of g inputs.

    Args:
        weight: (m, n), outputs by inputs.
        group_size: Inputs that share a grid; None is one grid for each output channel.

    Raises:
        QuantizationError: If the group size does not divide the number of inputs.
    """
    outputs, inputs = weight.shape
    size = inputs if group_size is None else group_size
    if inputs % size:
        raise QuantizationError(f"the group size {size} does not divide its {inputs} inputs")
    return weight.reshape(outputs, inputs // size, size)


def storage_bits(*, weights: int, bits: int, grids: int, family: GridFamily) -> int:
    """Count the bits of a stored weight tensor: codes, 16-bit scales, `bits`-bit zeros.

    Args:
        weights: Number of weights.
        bits: Bits of a code.
        grids: Number of scales.
        family: A symmetric grid stores no zeros.
    """
    zero_bits = 0 if family.is_symmetric else bits
    return weights * bits + grids * (SCALE_BITS + zero_bits)


def _grid_of_range(low: Tensor, high: Tensor, bits: int, family: GridFamily) -> AffineGrid:
    steps, middle, lowest = 2**bits - 1, 2 ** (bits - 1), family.lowest(bits)
    if family is GridFamily.SYMMETRIC_RESTRICTED:
        scale = _safe(high / (middle - 1))
        zero = torch.zeros_like(scale)
    else:
        scale = _safe((high - low) / steps)
        fixed = family is GridFamily.SYMMETRIC_SHIFTED
        zero = torch.full_like(scale, middle) if fixed else torch.round(-low / scale)
    return AffineGrid(scale=scale, zero=zero, lowest=lowest, highest=lowest + steps)


def _safe(scale: Tensor) -> Tensor:
    # A range so small that its step underflows would divide by zero; its values round to zero.
    return torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)


def _search_range(
    values: Tensor, low: Tensor, high: Tensor, bits: int, family: GridFamily
) -> tuple[Tensor, Tensor]:
    least = torch.full_like(low, torch.inf)
    best = torch.ones_like(low)
    for candidate in range(MSE_CLIP_CANDIDATES):
        shrink = 1 - candidate / MSE_CLIP_STEPS
        rounded = fake_quantize(values, _grid_of_range(shrink * low, shrink * high, bits, family))
        error = (rounded - values).abs_().pow_(MSE_CLIP_NORM).sum(-1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        best = torch.where(better, torch.full_like(best, shrink), best)
    return best * low, best * high
