"""The weight solver of GPTQ (arXiv 2210.17323): round one weight for one Hessian of its input.

With the Hessian H = (2 / T) X^T X of T calibration tokens, the error of a rounded weight V is
E(V) = tr((W - V) H (W - V)^T). U is the upper Cholesky factor of H^-1; after column i has been
rounded, every later column j receives -(w_i - v_i) U_ij / U_ii. The result is what the authors'
code computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dllm_sweep.errors import QuantizationError
from dllm_sweep.kernels.gptq_block import round_block
from dllm_sweep.quant.affine import GridFamily, WeightGrid, fit_grid, grouped, storage_bits

_DAMPING_RETRIES = 3
_LEAST_RETRY = 1e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class GptqResult:
    """A rounded weight.

    Attributes:
        dequantized: (m, n) float32, inputs in their original order.
        scales: (m, G) float32, one for each output and group.
        zeros: (m, G) float32, the codes of zero.
        group_of_input: (n,) int64, which group each input belongs to.
        permutation: (n,) int64, the order in which the inputs were rounded.
        damping: The damping that the factorization needed; more than asked for if it failed.
    """

    dequantized: Tensor
    scales: Tensor
    zeros: Tensor
    group_of_input: Tensor
    permutation: Tensor
    damping: float

    @property
    def has_contiguous_groups(self) -> bool:
        """Whether a group is a run of neighbouring inputs, so that no index has to be stored."""
        return not bool((self.group_of_input.diff() < 0).any())

    def grid(self, bits: int, family: GridFamily) -> WeightGrid:
        """Give what the weight was rounded to."""
        return WeightGrid(
            scales=self.scales,
            zeros=self.zeros,
            bits=bits,
            lowest=family.lowest(bits),
            group_of_input=None if self.has_contiguous_groups else self.group_of_input,
        )

    def bits_per_output(self, bits: int, family: GridFamily) -> int:
        """Stored bits of one output channel: codes, scales and zeros."""
        inputs, grids = self.dequantized.shape[1], self.scales.shape[1]
        return storage_bits(weights=inputs, bits=bits, grids=grids, family=family)


def quantize_weight(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    family: GridFamily = GridFamily.ASYMMETRIC,
    damping: float = 0.01,
    block_size: int = 128,
    activation_order: bool = True,
    static_groups: bool = True,
    mse_clip: bool = False,
    clip_ratio: float = 1.0,
    fitted_to: Tensor | None = None,
) -> GptqResult:
    """Round a weight with GPTQ; neither argument is changed.

    Inputs that are always zero (a zero on the Hessian's diagonal) get weight zero.

    Args:
        weight: (m, n), outputs by inputs; computed in float32. Layers with the same input can be
            stacked along m: rows do not influence each other.
        hessian: (n, n), symmetric, X^T X in any scale: that matters only beside inputs that are
            always zero, which count as 1 in the mean diagonal and in the order, as in the authors'
            code. Over all tokens, as `Hessian.over(inputs).total` has it, 1 is next to nothing.
        bits: 2 to 8.
        group_size: Inputs that share a grid; None is one grid for each output channel.
        family: `symmetric_shifted` is what the authors' code calls sym.
        damping: Share of the mean diagonal that is added to the diagonal.
        block_size: Columns between two updates of all later columns; changes the result only
            where groups are fitted on the way.
        activation_order: Round the inputs with the greatest diagonal first.
        static_groups: Fit the groups' grids before anything is rounded, on contiguous inputs.
            Otherwise each is fitted when its first column is reached, in the order of rounding,
            to the weight as of the last block update.
        mse_clip: Search each grid's range for the least error of norm 2.4.
        clip_ratio: Share of each range that its grid spans, in (0, 1].
        fitted_to: (m, n), a weight with other ranges that the grids are fitted to beforehand; None
            is `weight` itself.

    Raises:
        QuantizationError: If the group size does not divide n, or the Hessian is not finite or
            cannot be factorized.
    """
    original = weight.detach().float()
    size = grouped(original, group_size).shape[-1]
    dead = hessian.diagonal() == 0
    diagonal = hessian.diagonal().float().masked_fill(dead, 1)
    columns = original.masked_fill(dead, 0)
    order = torch.arange(len(dead), device=weight.device)
    if activation_order:
        order = torch.argsort(diagonal, descending=True)
    grids = _Grids(columns, size, bits, family, mse_clip=mse_clip, clip_ratio=clip_ratio)
    if static_groups or group_size is None:
        # The grid of a whole row is fitted to the weight as it came, dead inputs included.
        if fitted_to is None:
            fitted_to = original if group_size is None else columns
        grids.fit_all(fitted_to.float())
        grids.group_of_step = order // size
    del original, fitted_to
    factor, used = inverse_factor(hessian, diagonal, order, damping)
    rounded = _sweep(columns.T[order].contiguous(), factor, grids, block_size)
    back = torch.argsort(order)
    return GptqResult(
        dequantized=rounded[back].T.contiguous(),
        scales=grids.scales.T.contiguous(),
        zeros=grids.zeros.T.contiguous(),
        group_of_input=grids.group_of_step[back],
        permutation=order,
        damping=used,
    )


class _Grids:
    """The grids of a weight (m, n) with G groups of n / G steps.

    Attributes:
        scales: (G, m), of the groups that have been fitted.
        zeros: The same of the codes of zero.
        lowest: Least code.
        highest: Greatest code.
        group_of_step: (n,) int64; steps in their order until somebody says otherwise.
    """

    def __init__(
        self, weight: Tensor, size: int, bits: int, family: GridFamily, **options: Any
    ) -> None:
        outputs, inputs = weight.shape
        self.scales = weight.new_empty(inputs // size, outputs)
        self.zeros = torch.empty_like(self.scales)
        self.lowest = family.lowest(bits)
        self.highest = self.lowest + 2**bits - 1
        self.group_of_step = torch.arange(inputs, device=weight.device) // size
        self._size, self._fitted = size, 0
        self._options: dict[str, Any] = {"bits": bits, "family": family, **options}

    def fit_all(self, weight: Tensor) -> None:
        """Fit every group's grid to neighbouring inputs of a weight (m, n)."""
        for part in weight.split(self._size, dim=1):
            self._fit_next(part)

    def fit_until(self, stop: int, columns: Tensor) -> None:
        """Fit the grids that begin before step `stop` to the weight (n, m) as it is now."""
        while self._fitted < len(self.scales) and self._fitted * self._size < stop:
            first = self._fitted * self._size
            self._fit_next(columns[first : first + self._size].T)

    def _fit_next(self, part: Tensor) -> None:
        grid = fit_grid(part, **self._options)
        self.scales[self._fitted], self.zeros[self._fitted] = grid.scale[:, 0], grid.zero[:, 0]
        self._fitted += 1


def _sweep(columns: Tensor, factor: Tensor, grids: _Grids, block_size: int) -> Tensor:
    # `columns` is (n, m), so that one input's weights lie together; it is used up.
    rounded = torch.empty_like(columns)
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        # Within a block only its own copy changes: every group that begins here can be fitted now.
        grids.fit_until(stop, columns)
        rounded[start:stop], errors = round_block(
            columns[start:stop],
            factor[start:stop, start:stop],
            grids.scales,
            grids.zeros,
            grids.group_of_step[start:stop],
            lowest=grids.lowest,
            highest=grids.highest,
        )
        columns[stop:] -= factor[start:stop, stop:].T @ errors
    return rounded


def inverse_factor(
    hessian: Tensor, diagonal: Tensor, order: Tensor, damping: float
) -> tuple[Tensor, float]:
    """Factorize the inverse of the damped Hessian, with more damping where that fails.

    Beside the Hessian, at most three matrices of its size are held at a time.

    Args:
        hessian: (n, n), left as it is.
        diagonal: (n,) float32, what stands in the place of its diagonal.
        order: (n,) int64, the order of the inputs in the factor.
        damping: Share of the mean diagonal to add first; it grows tenfold after each failure.

    Returns:
        The upper Cholesky factor (n, n) of the inverse, float32, and the damping that worked.

    Raises:
        QuantizationError: If the Hessian is not finite, or no damping helps.
    """
    if not _is_finite(hessian):
        raise QuantizationError("the Hessian of its inputs is not finite; do activations overflow?")
    damped = diagonal[order]
    mean = damped.mean()
    added = 0.0
    retries = (max(damping, _LEAST_RETRY) * 10**k for k in range(1, _DAMPING_RETRIES + 1))
    for attempt in (damping, *retries):
        damped.add_((attempt - added) * mean)
        added = attempt
        for dtype in (torch.float32, torch.float64):
            factor = _try_inverse_factor(hessian, order, damped, dtype)
            if factor is not None:
                return factor.float(), attempt
    raise QuantizationError(
        f"the Hessian of its inputs cannot be factorized, even with damping {added:g};"
        " use more calibration text"
    )


def _try_inverse_factor(
    hessian: Tensor, order: Tensor, diagonal: Tensor, dtype: torch.dtype
) -> Tensor | None:
    factorize = _backwards if hessian.is_cuda else _step_by_step
    try:
        factor = factorize(hessian, order, diagonal, dtype)
    except torch.linalg.LinAlgError:
        return None
    return factor if _is_finite(factor) else None


# Each step's input is let go before the next begins: at 19k inputs each is 1.4 GB.


def _step_by_step(hessian: Tensor, order: Tensor, diagonal: Tensor, dtype: torch.dtype) -> Tensor:
    """Do what the authors' code does, and so make its rounding errors."""
    matrix = hessian[order[:, None], order].to(dtype)
    matrix.diagonal().copy_(diagonal)
    matrix = torch.linalg.cholesky(matrix)
    matrix = torch.cholesky_inverse(matrix)
    return torch.linalg.cholesky(matrix, upper=True)


def _backwards(hessian: Tensor, order: Tensor, diagonal: Tensor, dtype: torch.dtype) -> Tensor:
    """Invert a factor instead of H: read backwards, H is L L^T, and the result is L^-1.

    It takes half the time. Where tokens are few or inputs dead, other rounding errors than the
    authors' move up to 1% of a layer's weights to other codes, which are as good.
    """
    order = order.flip(0)
    matrix = hessian[order[:, None], order].to(dtype)
    matrix.diagonal().copy_(diagonal.flip(0))
    matrix = torch.linalg.cholesky(matrix)
    identity = torch.eye(len(matrix), dtype=dtype, device=matrix.device)
    matrix = torch.linalg.solve_triangular(matrix, identity, upper=False)
    del identity
    return matrix.flip(0, 1)


def _is_finite(tensor: Tensor) -> bool:
    # Without a second tensor of its size; a NaN is the least and the greatest at once.
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
