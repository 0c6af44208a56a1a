"""What methods share that transform a model first and round its weights and activations then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods import gptq, rtn
from dllm_sweep.methods.base import QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Prepare, Solver, quantize_layerwise
from dllm_sweep.methods.parameters import Patterns, require
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.family import Widths
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.apply import unsupported
from dllm_sweep.quant.attention import GRIDS, operand_bits, round_operands
from dllm_sweep.quant.hadamard import without_hadamard
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

SOLVERS = ("rtn", "gptq")


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How weights and activations are rounded once a model has been transformed.

    Attributes:
        solver: How weights are rounded: `rtn` or `gptq`.
        mse_clip: Search each weight grid's range for the least error.
        weight_clip: Share of a weight range that its grid spans, in (0, 1]; null is the method's
            own for the bit-width.
        damping: Share of the Hessian's mean diagonal that is added to it; for gptq.
        activation_order: Round the inputs with the greatest activations first; for gptq.
        activation_symmetric: Whether the activation grid is symmetric.
        activation_clip: Share of a token's range that its grid spans, in (0, 1]; null is the
            method's own for the bit-width.
        operand_clip: The same for queries, keys and values inside attention, where the scheme
            rounds them.
        value_clip: The same for values alone; null is as `operand_clip`.
        operand_symmetric: Whether the grids of queries, keys and values are symmetric.
        operand_grids: What of them has a grid of its own: each `head` of a token, or each `token`
            with all its heads.
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    symmetric: ClassVar[bool]
    rotates_operands: ClassVar[bool] = False
    """Whether queries and keys pass a Hadamard transform before they are rounded."""

    solver: str = "rtn"
    mse_clip: bool = False
    weight_clip: float | None = None
    damping: float = 0.01
    activation_order: bool = False
    activation_symmetric: bool = True
    activation_clip: float | None = None
    operand_clip: float | None = None
    value_clip: float | None = None
    operand_symmetric: bool = False
    operand_grids: str = "head"
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(self.solver in SOLVERS, "solver", self.solver, " or ".join(SOLVERS))
        require(0 <= self.damping < 1, "damping", self.damping, "at least 0 and below 1")
        grids = self.operand_grids
        require(grids in GRIDS, "operand_grids", grids, " or ".join(GRIDS))
        for name in ("weight_clip", "activation_clip", "operand_clip", "value_clip"):
            given = getattr(self, name)
            require(given is None or 0 < given <= 1, name, given, "(0, 1]")

    def usual_weight_clip(self, scheme: QuantScheme) -> float:
        """Give the weight clip ratio where the user does not say."""
        return 1.0

    def usual_activation_clip(self, bits: int) -> float:
        """Give the activation clip ratio where the user does not say."""
        return 1.0

    def usual_operand_clip(self, bits: int) -> float:
        """Give the clip ratio of queries, keys and values where the user does not say."""
        return 1.0

    def rounding_refusal(self, method: str, scheme: QuantScheme) -> str | None:
        """Say what of `scheme` cannot be rounded, or None."""
        if self.solver == "gptq" and scheme.w_bits == FULL_PRECISION_BITS:
            return f"{scheme}: the solver gptq rounds weights; use solver rtn for activations alone"
        if self.solver == "rtn" and (self.activation_order or self.damping != Rounding.damping):
            return "the solver rtn reads neither damping nor activation_order; use solver gptq"
        if self.mse_clip and self.weight_clip not in (None, 1.0):
            return "mse_clip searches the range that weight_clip fixes; set mse_clip to false"
        return unsupported(method, scheme, operands=True)

    def misfit(self, scheme: QuantScheme, widths: Widths) -> str | None:
        """Say why a model of these sizes cannot be quantized to `scheme`, or None."""
        return without_hadamard(self.operand_sizes(scheme, widths))

    def operand_sizes(self, scheme: QuantScheme, widths: Widths) -> dict[str, int]:
        """Give the sizes inside attention that have to have a Hadamard matrix."""
        rotated = self.rotates_operands and operand_bits(scheme)[1] < FULL_PRECISION_BITS
        return {"the size of a head": widths.head} if rotated else {}

    def round(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        workspace: Workspace,
        prepare: Prepare | None = None,
    ) -> QuantizationReport:
        """Round a transformed model in place.

        Args:
            model: Its transforms are fused, or in front of its linears.
            scheme: Bit-widths and group size.
            calibration: What the model sees; not read by rtn without `prepare`.
            workspace: What surrounds the work.
            prepare: Puts transforms in front of a block's linears, given its inputs.

        Raises:
            QuantizationError: If there is no calibration text where it is needed, a pattern
                matches nothing, or a layer cannot be quantized.
        """
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        operands = self._round_operands(model, scheme)
        report = quantize_layerwise(
            model,
            scheme,
            calibration,
            self._solver(scheme, symmetric),
            activation=self._activation(scheme),
            symmetric=symmetric,
            true_sequential=True,
            modules=self.modules,
            skip_modules=self.skip_modules,
            workspace=workspace,
            reads_inputs=self.solver == "gptq",
            prepare=prepare,
        )
        return replace(report, modules=(*report.modules, *operands))

    def _round_operands(self, model: DiffusionModel, scheme: QuantScheme) -> tuple[ModuleRow, ...]:
        queries, others = operand_bits(scheme)
        clip = self.operand_clip
        return round_operands(
            model,
            scheme,
            symmetric=self.operand_symmetric,
            clip_ratio=self.usual_operand_clip(others) if clip is None else clip,
            query_clip_ratio=self.usual_operand_clip(queries) if clip is None else clip,
            value_clip_ratio=self.value_clip,
            rotate=self.rotates_operands,
            grids=self.operand_grids,
        )

    def _activation(self, scheme: QuantScheme) -> ActivationQuantization:
        clip = self.activation_clip
        return ActivationQuantization(
            bits=scheme.a_bits,
            symmetric=self.activation_symmetric,
            clip_ratio=self.usual_activation_clip(scheme.a_bits) if clip is None else clip,
        )

    def _solver(self, scheme: QuantScheme, symmetric: bool) -> Solver:
        bits, clip = scheme.w_bits, self.weight_clip
        family = GridFamily.SYMMETRIC_RESTRICTED if symmetric else GridFamily.ASYMMETRIC
        group_size, mse_clip = scheme.group_size, self.mse_clip
        usual = 1.0 if mse_clip else self.usual_weight_clip(scheme)
        ratio = usual if clip is None else clip
        if self.solver == "rtn":
            return rtn.solver(
                bits=bits, family=family, group_size=group_size, mse_clip=mse_clip, clip_ratio=ratio
            )
        return gptq.solver(
            bits=bits,
            family=family,
            group_size=group_size,
            mse_clip=mse_clip,
            clip_ratio=ratio,
            damping=self.damping,
            activation_order=self.activation_order,
        )
