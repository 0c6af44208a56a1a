"""A quantization method of your own, without data: `examples/my_method.py:MyMethod` in a sweep.

It clips each output channel at a quantile of its absolute weights, then rounds to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods import rtn
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Solution, quantize_layerwise
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import weight_family
from dllm_sweep.quant.apply import unsupported
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme


def clip_to_quantile(weight: Tensor, quantile: float) -> Tensor:
    """Clip each row of a weight (m, n) at a quantile of its absolute values."""
    bound = torch.quantile(weight.abs(), quantile, dim=1, keepdim=True)
    return weight.clamp(-bound, bound)


@dataclass(frozen=True, kw_only=True)
class MyMethod:
    """Clip at a quantile, then round to nearest.

    Attributes:
        quantile: Share of each row's weights that keep their value, in (0, 1].
        modules: Which linears are quantized.
    """

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

    quantile: float = 0.999
    modules: Patterns = ("*",)

    def __post_init__(self) -> None:
        require(0 < self.quantile <= 1, "quantile", self.quantile, "a number in (0, 1]")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse schemes that leave the weights alone, and quantized attention."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return "it quantizes weights"
        return unsupported("my_method", scheme)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place and say what was done to each linear."""
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        nearest = rtn.solver(
            bits=scheme.w_bits, family=weight_family(symmetric), group_size=scheme.group_size
        )

        def solve(weight: Tensor, hessian: Tensor) -> Solution:
            return nearest(clip_to_quantile(weight.float(), self.quantile), hessian)

        return quantize_layerwise(
            model,
            scheme,
            calibration,
            solve,
            symmetric=symmetric,
            modules=self.modules,
            workspace=workspace,
            reads_inputs=False,
        )
