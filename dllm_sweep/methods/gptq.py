"""GPTQ (arXiv 2210.17323): round column by column, compensate in the columns not yet rounded.

The pure function `quantize_weight` of `quant/gptq_weight.py` computes what the authors' code
computes; the class runs it over a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Solution, Solver, quantize_layerwise
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.affine import GridFamily, weight_family
from dllm_sweep.quant.apply import unsupported
from dllm_sweep.quant.attention import round_operands
from dllm_sweep.quant.gptq_weight import GptqResult, quantize_weight
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

__all__ = ["PLUGIN", "Gptq", "GptqResult", "quantize_weight", "solver"]

GROUP_INDEX_BITS = 32
"""What an input's group costs where groups are not contiguous."""


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
        true_sequential: Quantize a block group by group, so that later groups see earlier ones
            quantized; otherwise all of a block's layers see its full-precision activations.
        output_first: Group by group, but the output projection of the attention before its inputs,
            and the down projection before the gate and the up projection: an order of published
            code. The usual one is that of the forward pass.
        mse_clip: Search each grid's range for the least error.
        activation_symmetric: Whether the activation grid is symmetric.
        activation_clip: Share of a token's range that its grid spans, in (0, 1].
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    version: ClassVar[int] = 2
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = False

    damping: float = 0.01
    block_size: int = 128
    activation_order: bool = True
    static_groups: bool = True
    true_sequential: bool = True
    output_first: bool = False
    mse_clip: bool = False
    activation_symmetric: bool = True
    activation_clip: float = 1.0
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(0 <= self.damping < 1, "damping", self.damping, "at least 0 and below 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1")
        require(0 < self.activation_clip <= 1, "activation_clip", self.activation_clip, "(0, 1]")
        ordered = self.true_sequential or not self.output_first
        require(ordered, "output_first", self.output_first, "false without true_sequential")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse weights that stay as they are."""
        if scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: gptq quantizes weights; use rtn for activations alone"
        return unsupported("gptq", scheme, operands=True)

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
        operands = round_operands(model, scheme)
        report = quantize_layerwise(
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
            output_first=self.output_first,
            modules=self.modules,
            skip_modules=self.skip_modules,
            workspace=workspace,
        )
        return replace(report, modules=(*report.modules, *operands))


PLUGIN = Gptq
