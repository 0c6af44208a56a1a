"""Round to nearest: each weight goes to the nearest point of its grid, without any data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import Solution, Solver
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
from dllm_sweep.quant.apply import install, select, unsupported
from dllm_sweep.quant.attention import round_operands
from dllm_sweep.quant.linear import ActivationQuantization
from dllm_sweep.quant.visiting import visiting
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme


@dataclass(frozen=True, kw_only=True, eq=False)
class RtnResult:
    """A rounded weight.

    Attributes:
        dequantized: (outputs, inputs), float32.
        grid: One grid for each output channel and group; scales (outputs, groups, 1), or
            (1, 1, 1) for a single grid.
    """

    dequantized: Tensor
    grid: AffineGrid


def quantize_weight(
    weight: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    family: GridFamily = GridFamily.ASYMMETRIC,
    per_tensor: bool = False,
    mse_clip: bool = False,
    clip_ratio: float = 1.0,
) -> RtnResult:
    """Round a weight to nearest.

    Args:
        weight: (outputs, inputs), any floating-point type; computed in float32.
        bits: 2 to 8.
        group_size: Contiguous inputs that share a grid; None is one grid per output channel.
        family: How a range becomes a grid; GPTQ's "sym" is `symmetric_shifted`.
        per_tensor: One grid for the whole weight; excludes `group_size`.
        mse_clip: Search each grid's range for the least error of norm 2.4.
        clip_ratio: Share of each range that its grid spans, in (0, 1].

    Raises:
        QuantizationError: If the group size does not divide the number of inputs.
    """
    rows = grouped(weight.detach().float(), group_size)
    values = rows.reshape(1, 1, -1) if per_tensor else rows
    grid = fit_grid(values, bits=bits, family=family, mse_clip=mse_clip, clip_ratio=clip_ratio)
    return RtnResult(dequantized=fake_quantize(rows, grid).reshape(weight.shape), grid=grid)


def solver(*, bits: int, family: GridFamily, **options: Any) -> Solver:
    """Make a solver that reads no inputs; the arguments are those of `quantize_weight`.

    At 16 bits it leaves weights as they are.
    """

    def solve(weight: Tensor, _: Tensor) -> Solution:
        inputs = weight.shape[1]
        if bits == FULL_PRECISION_BITS:
            return Solution(dequantized=weight, bits_per_output=inputs * bits)
        result = quantize_weight(weight, bits=bits, family=family, **options)
        grids = result.grid.scale.shape[1]
        stored = storage_bits(weights=inputs, bits=bits, grids=grids, family=family)
        return Solution(
            dequantized=result.dequantized,
            bits_per_output=stored,
            grid=WeightGrid.of(result.grid),
        )

    return solve


@dataclass(frozen=True, kw_only=True)
class Rtn:
    """Round to nearest.

    Attributes:
        per_tensor: One grid for the whole weight instead of one per output channel.
        mse_clip: Search each grid's range for the least error.
        activation_symmetric: Whether the activation grid is symmetric.
        activation_clip: Share of a token's range that its grid spans, in (0, 1].
        modules: Which linears are quantized.
        skip_modules: Which of them are left out.
    """

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

    per_tensor: bool = False
    mse_clip: bool = False
    activation_symmetric: bool = True
    activation_clip: float = 1.0
    modules: Patterns = ("*",)
    skip_modules: Patterns = ()

    def __post_init__(self) -> None:
        require(0 < self.activation_clip <= 1, "activation_clip", self.activation_clip, "(0, 1]")

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse full precision, and groups within a single grid."""
        if self.per_tensor and scheme.group_size is not None:
            return "per_tensor and a group size exclude each other"
        return unsupported("rtn", scheme, operands=True)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; `calibration` and `seed` are not used."""
        # Nothing holds the linears: a weight goes as soon as a rounded one is in its place.
        chosen = select(model.linears(), self.modules, self.skip_modules)
        rows = []
        for index in range(len(model.blocks)):
            prefix = f"{model.block_name(index)}."
            names = [name for name in chosen if name.startswith(prefix)]
            with visiting(model.blocks[index], workspace.device):
                rows += [self._quantize_linear(model, name, scheme) for name in names]
            workspace.progress(index + 1, len(model.blocks))
        rows += round_operands(model, scheme)
        return QuantizationReport(modules=tuple(rows))

    def _quantize_linear(self, model: DiffusionModel, name: str, scheme: QuantScheme) -> ModuleRow:
        weight = model.host.get_submodule(name).weight
        symmetric = self.symmetric if scheme.symmetric is None else scheme.symmetric
        dequantized, bits, grid = self._rounded(name, weight, scheme, weight_family(symmetric))
        activation = ActivationQuantization(
            bits=scheme.a_bits,
            symmetric=self.activation_symmetric,
            clip_ratio=self.activation_clip,
        )
        return install(
            model.host,
            name,
            dequantized,
            scheme=scheme,
            symmetric=symmetric,
            activation=activation,
            bits=bits,
            grid=grid,
        )

    def _rounded(
        self, name: str, weight: Tensor, scheme: QuantScheme, family: GridFamily
    ) -> tuple[Tensor, int, WeightGrid | None]:
        if scheme.w_bits == FULL_PRECISION_BITS:
            return weight.detach(), weight.numel() * FULL_PRECISION_BITS, None
        try:
            result = quantize_weight(
                weight,
                bits=scheme.w_bits,
                group_size=scheme.group_size,
                family=family,
                per_tensor=self.per_tensor,
                mse_clip=self.mse_clip,
            )
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
        bits = storage_bits(
            weights=weight.numel(),
            bits=scheme.w_bits,
            grids=result.grid.scale.numel(),
            family=family,
        )
        return result.dequantized, bits, WeightGrid.of(result.grid)


PLUGIN = Rtn
