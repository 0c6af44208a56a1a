"""Rounded weights as integer codes, and codes as bits without gaps.

A weight that was rounded to its grid is s (q - z), so that its code q can be read off. A bfloat16
copy has 8 significant bits: to 7 bits it still shows every code, and at 8 bits, where two codes can
become one number, a code of just this number.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.affine import WeightGrid

_BITS_PER_BYTE = 8


def codes_of(weight: Tensor, grid: WeightGrid) -> Tensor:
    """Give the integer codes of a rounded weight.

    Args:
        weight: (m, n), on the grid in float32, or such a weight in bfloat16 or float16.
        grid: What it was rounded to.

    Returns:
        (m, n) int16, each from `grid.lowest` to `grid.highest`; `weight_of` them is `weight`.

    Raises:
        QuantizationError: If the weight is not on this grid.
    """
    view, scales, zeros = _by_group(weight, grid)
    codes = torch.round(view.float() / scales + zeros).clamp_(grid.lowest, grid.highest)
    wrong = _dequantized(codes, scales, zeros, weight.dtype) != view
    # Just below a power of two the numbers of a type lie closer: there the neighbour may be meant.
    for neighbour in (codes + 1, codes - 1) if bool(wrong.any()) else ():
        tried = neighbour.clamp(grid.lowest, grid.highest)
        right = _dequantized(tried, scales, zeros, weight.dtype) == view
        codes = torch.where(wrong & right, tried, codes)
        wrong &= ~right
    if bool(wrong.any()):
        raise QuantizationError("the weight is not on the grid that it was rounded to")
    return codes.to(torch.int16).view(weight.shape)


def weight_of(codes: Tensor, grid: WeightGrid, dtype: torch.dtype) -> Tensor:
    """Give the weight (m, n) in `dtype` that integer codes (m, n) stand for.

    It is computed in float32 as rounding computes it, so that it is the same bit for bit.
    """
    view, scales, zeros = _by_group(codes, grid)
    return _dequantized(view, scales, zeros, dtype).view(codes.shape)


def per_input(grid: WeightGrid, inputs: int) -> tuple[Tensor, Tensor]:
    """Give the scale and the zero of every input: (m, n) each, or (1, n) if all outputs share one.

    Args:
        grid: Of a weight (m, n).
        inputs: n.
    """
    if grid.group_of_input is not None:
        return grid.scales[:, grid.group_of_input], grid.zeros[:, grid.group_of_input]
    size = inputs // grid.scales.shape[1]
    return grid.scales.repeat_interleave(size, 1), grid.zeros.repeat_interleave(size, 1)


def _dequantized(codes: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    return (codes.float() - zeros).mul_(scales).to(dtype)


def _by_group(values: Tensor, grid: WeightGrid) -> tuple[Tensor, Tensor, Tensor]:
    """View values (m, n) as (m, G, n / G), and scales and zeros so that they fit; groups that are
    no neighbours count as n groups of one."""
    scales, zeros = grid.scales, grid.zeros
    if grid.group_of_input is not None:
        scales, zeros = per_input(grid, values.shape[1])
    view = values.reshape(len(values), scales.shape[1], -1)
    return view, scales[..., None], zeros[..., None]


def packed_bytes(count: int, bits: int) -> int:
    """Give how many bytes `count` codes take."""
    return -(-count * bits // _BITS_PER_BYTE)


def pack(codes: Tensor, *, bits: int, lowest: int) -> Tensor:
    """Write codes one after the other, lowest bit first, without gaps.

    Args:
        codes: Integers of any shape, from `lowest` to `lowest + 2**bits - 1`.
        bits: Of a code, 1 to 8.
        lowest: Stored as 0.

    Returns:
        (ceil(bits * count / 8),) uint8.
    """
    flat = (codes.flatten().to(torch.int16) - lowest).to(torch.uint8)
    # Eight codes fill `bits` whole bytes, so that each row is packed on its own.
    rows = pad(flat, (0, -len(flat) % _BITS_PER_BYTE)).view(-1, _BITS_PER_BYTE)
    packed = rows.new_zeros(len(rows), bits)
    for place in range(_BITS_PER_BYTE):
        byte, shift = divmod(place * bits, _BITS_PER_BYTE)
        packed[:, byte] |= rows[:, place] << shift
        if shift + bits > _BITS_PER_BYTE:
            packed[:, byte + 1] |= rows[:, place] >> (_BITS_PER_BYTE - shift)
    return packed.flatten()[: packed_bytes(len(flat), bits)].clone()


def unpack(packed: Tensor, count: int, *, bits: int, lowest: int) -> Tensor:
    """Read `count` codes (count,) int16 from what `pack` wrote; the inverse of it."""
    rows = pad(packed, (0, -len(packed) % bits)).view(-1, bits)
    codes = rows.new_zeros(len(rows), _BITS_PER_BYTE)
    for place in range(_BITS_PER_BYTE):
        byte, shift = divmod(place * bits, _BITS_PER_BYTE)
        codes[:, place] = rows[:, byte] >> shift
        if shift + bits > _BITS_PER_BYTE:
            codes[:, place] |= rows[:, byte + 1] << (_BITS_PER_BYTE - shift)
    codes &= 2**bits - 1
    return codes.flatten()[:count].to(torch.int16) + lowest
