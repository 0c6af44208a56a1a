"""A calibrated method of your own: `examples/my_solver.py:MySolver` in a sweep file.

It rounds to nearest and then visits the columns of the weight again and again, as QuantEase (arXiv
2309.01885) does: while all others stay, the output's error is a parabola in each weight, and the
best point of its grid is the one nearest to the parabola's lowest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods import rtn
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Solution, quantize_layerwise
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import weight_family
from dllm_sweep.quant.apply import unsupported
from dllm_sweep.quant.packing import per_input
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme


def descend(weight: Tensor, hessian: Tensor, first: Solution, sweeps: int) -> Solution:
    """Lower tr((W - V) H (W - V)^T) from a first V on, which stays on its grid.

    Args:
        weight: (m, n), W.
        hessian: (n, n), H.
        first: V and its grid; it is not changed.
        sweeps: How often each column is visited.
    """
    wanted, rounded, grid = weight.float(), first.dequantized.clone(), first.grid
    scale, zero = (part.T for part in per_input(grid, len(hessian)))
    for j in hessian.diagonal().nonzero().flatten().tolist() * sweeps:
        slope = (wanted - rounded) @ hessian[:, j]
        lowest = rounded[:, j] + slope / hessian[j, j]
        code = (lowest / scale[j]).round() + zero[j]
        rounded[:, j] = scale[j] * (code.clamp(grid.lowest, grid.highest) - zero[j])
    return replace(first, dequantized=rounded)


@dataclass(frozen=True, kw_only=True)
class MySolver:
    """Round to nearest, then descend column by column.

    Attributes:
        sweeps: How often each column is visited.
        damping: Share of the Hessian's mean diagonal that is added to it.
        modules: Which linears are quantized.
    """

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    sweeps: int = 4
    damping: float = 0.01
    modules: Patterns = ("*",)

    def __post_init__(self) -> None:
        require(self.sweeps >= 1, "sweeps", self.sweeps, "at least 1")
        require(self.damping >= 0, "damping", self.damping, "at least 0")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse schemes that leave the weights alone, and rounding inside attention."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: my_solver quantizes weights"
        return unsupported("my_solver", scheme)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place, each layer on what the quantized layers before it give."""
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        nearest = rtn.solver(
            bits=scheme.w_bits, family=weight_family(symmetric), group_size=scheme.group_size
        )

        def solve(weight: Tensor, hessian: Tensor) -> Solution:
            damped = hessian.clone()
            damped.diagonal().add_(self.damping * hessian.diagonal().mean())
            return descend(weight, damped, nearest(weight, hessian), self.sweeps)

        return quantize_layerwise(
            model,
            scheme,
            calibration,
            solve,
            symmetric=symmetric,
            modules=self.modules,
            workspace=workspace,
        )
