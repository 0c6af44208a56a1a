"""GPTQ (arXiv 2210.17323): round column by column, compensate in the columns not yet rounded.

With the Hessian H = (2 / T) X^T X of T calibration tokens, the error of a rounded weight V is
E(V) = tr((W - V) H (W - V)^T). U is the upper Cholesky factor of H^-1; after column i has been
rounded, every later column j receives -(w_i - v_i) U_ij / U_ii. The pure function
`quantize_weight` computes what the authors' code computes; the class runs it over a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Solution, Solver, quantize_layerwise
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import (
    AffineGrid,
    GridFamily,
    WeightGrid,
    fake_quantize,
    fit_grid,
    grouped,
    storage_bits,
    weight_family,
)
from dllm_sweep.quant.apply import unsupported
from dllm_sweep.quant.hessian import inverse_factor
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

GROUP_INDEX_BITS = 32
"""What an input's group costs where groups are not contiguous."""


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
) -> GptqResult:
    """Round a weight with GPTQ; neither argument is changed.

    Inputs that are always zero (a zero on the Hessian's diagonal) get weight zero.

    Args:
        weight: (m, n), outputs by inputs; computed in float32. Layers with the same input can be
            stacked along m: rows do not influence each other.
        hessian: (n, n), symmetric, (2 / T) X^T X, as `Hessian.over(inputs).mean()` gives it. Its
            scale matters only beside inputs that are always zero: these count as 1 in the mean
            diagonal and in the order, as in the authors' code.
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

    Raises:
        QuantizationError: If the group size does not divide n, or the Hessian is not finite or
            cannot be factorized.
    """
    original = weight.detach().float()
    size = grouped(original, group_size).shape[-1]
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    columns = original.masked_fill(dead, 0)
    options: dict[str, Any] = {"bits": bits, "family": family}
    options |= {"mse_clip": mse_clip, "clip_ratio": clip_ratio}
    order = torch.arange(len(dead), device=weight.device)
    if activation_order:
        order = torch.argsort(diagonal, descending=True, stable=True)
    if static_groups or group_size is None:
        # The grid of a whole row is fitted to the weight as it came, dead inputs included.
        source = original if group_size is None else columns
        fitted = [fit_grid(part, **options) for part in source.split(size, dim=1)]
        grids = _Grids(fitted=fitted, size=size, options=options, group_of_step=order // size)
    else:
        steps = torch.arange(len(order)) // size
        grids = _Grids(fitted=[], size=size, options=options, group_of_step=steps)
    factor, used = inverse_factor(hessian, dead, order, damping)
    rounded = _sweep(columns.T[order].contiguous(), factor, grids, block_size)
    back = torch.argsort(order)
    return GptqResult(
        dequantized=rounded[back].T.contiguous(),
        scales=torch.cat([grid.scale for grid in grids.fitted], dim=1),
        zeros=torch.cat([grid.zero for grid in grids.fitted], dim=1),
        group_of_input=grids.group_of_step.to(back.device)[back],
        permutation=order,
        damping=used,
    )


@dataclass(kw_only=True)
class _Grids:
    """The grid of each step; fitted on the way where `fitted` starts empty."""

    fitted: list[AffineGrid]
    size: int
    options: dict[str, Any]
    group_of_step: Tensor
    groups: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.groups = self.group_of_step.tolist()

    def at(self, step: int, columns: Tensor) -> AffineGrid:
        """Give the grid for one column; scales and zeros (m,)."""
        group = self.groups[step]
        if group == len(self.fitted):
            self.fitted.append(fit_grid(columns[step : step + self.size].T, **self.options))
        grid = self.fitted[group]
        return AffineGrid(
            scale=grid.scale[:, 0],
            zero=grid.zero[:, 0],
            lowest=grid.lowest,
            highest=grid.highest,
        )


def _sweep(columns: Tensor, factor: Tensor, grids: _Grids, block_size: int) -> Tensor:
    # `columns` is (n, m), so that one input's weights lie together; it is used up.
    rounded = torch.empty_like(columns)
    for start in range(0, len(columns), block_size):
        stop = min(start + block_size, len(columns))
        block, within = columns[start:stop].clone(), factor[start:stop, start:stop]
        for i in range(stop - start):
            rounded[start + i] = fake_quantize(block[i], grids.at(start + i, columns))
            error = (block[i] - rounded[start + i]) / within[i, i]
            block[i + 1 :] -= within[i, i + 1 :, None] * error
            block[i] = error
        columns[stop:] -= factor[start:stop, stop:].T @ block
    return rounded


def solver(*, bits: int, family: GridFamily, damping: float = 0.01, **options: Any) -> Solver:
    """Make a solver for `quantize_layerwise`; the arguments are those of `quantize_weight`."""

    def solve(weight: Tensor, hessian: Tensor) -> Solution:
        result = quantize_weight(
            weight, hessian, bits=bits, family=family, damping=damping, **options
        )
        more = f"the Hessian needed damping {result.damping:g} instead of {damping:g}"
        return Solution(
            dequantized=result.dequantized,
            bits_per_output=result.bits_per_output(bits, family),
            bits_per_input=0 if result.has_contiguous_groups else GROUP_INDEX_BITS,
            grid=result.grid(bits, family),
            warning=f"{more}; use more calibration text" if result.damping > damping else None,
        )

    return solve


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """GPTQ, block by block: later layers are calibrated on what the quantized earlier ones give.

    Attributes:
        damping: Share of the mean diagonal of the Hessian that is added to it.
        block_size: Columns between two updates of all later columns.
        activation_order: Round the inputs with the greatest activations first.
        static_groups: Fit all grids beforehand, so that groups stay contiguous.
        true_sequential: Quantize a block in the order of its forward pass, group by group;
            otherwise all of a block's layers see its full-precision activations.
        mse_clip: Search each grid's range for the least error.
        activation_symmetric: Whether the activation grid is symmetric.
        activation_clip: Share of a token's range that its grid spans, in (0, 1].
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    damping: float = 0.01
    block_size: int = 128
    activation_order: bool = True
    static_groups: bool = True
    true_sequential: bool = True
    mse_clip: bool = False
    activation_symmetric: bool = True
    activation_clip: float = 1.0
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(0 <= self.damping < 1, "damping", self.damping, "at least 0 and below 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1")
        require(0 < self.activation_clip <= 1, "activation_clip", self.activation_clip, "(0, 1]")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse weights that stay as they are, and attention operands."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: gptq quantizes weights; use rtn for activations alone"
        return unsupported("gptq", scheme)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; nothing is random, so `seed` is not used.

        Raises:
            QuantizationError: If there is no calibration text, a pattern matches nothing, or a
                layer cannot be quantized.
        """
        activation = ActivationQuantization(
            bits=scheme.a_bits,
            symmetric=self.activation_symmetric,
            clip_ratio=self.activation_clip,
        )
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        return quantize_layerwise(
            model,
            scheme,
            calibration,
            solver(
                bits=scheme.w_bits,
                group_size=scheme.group_size,
                family=weight_family(symmetric),
                damping=self.damping,
                block_size=self.block_size,
                activation_order=self.activation_order,
                static_groups=self.static_groups,
                mse_clip=self.mse_clip,
            ),
            activation=activation,
            symmetric=symmetric,
            true_sequential=self.true_sequential,
            modules=self.modules,
            skip_modules=self.skip_modules,
            workspace=workspace,
        )


PLUGIN = Gptq
