"""SmoothQuant (arXiv 2211.10438): move the outliers of activations into the weights, then round.

The input of the linears behind a norm is divided channel by channel by
s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), the weights are multiplied by it, and the norm takes
the division over. `groups: all` does the same in front of the output and the down projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.layerwise import require_text
from dllm_sweep.methods.parameters import require
from dllm_sweep.methods.rounding import Rounding
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.apply import select
from dllm_sweep.quant.hessian import exact_products
from dllm_sweep.quant.smoothing import SCALE_FROM, smooth
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

GROUPS = ("norm", "all")


@dataclass(frozen=True, kw_only=True)
class SmoothQuant(Rounding):
    """SmoothQuant; the parameters of `Rounding` and these.

    Attributes:
        alpha: Share of the difficulty that goes into the weights, in [0, 1].
        groups: `norm` smooths what reads a norm, as the paper does; `all` also the inputs of the
            output and the down projection.
        scale_from: Whose weights the scales are computed from, for linears with a common input:
            `all`, as the authors do, or the `first` alone (of query, key and value the query, of
            gate and up the up projection), as the study's code does.
    """

    version: ClassVar[int] = 2
    needs_calibration: ClassVar[bool] = True
    symmetric: ClassVar[bool] = True

    alpha: float = 0.5
    groups: str = "norm"
    scale_from: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "[0, 1]")
        require(self.groups in GROUPS, "groups", self.groups, " or ".join(GROUPS))
        expected = " or ".join(SCALE_FROM)
        require(self.scale_from in SCALE_FROM, "scale_from", self.scale_from, expected)

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse full-precision activations: there would be nothing to smooth."""
        if scheme.a_bits == FULL_PRECISION_BITS and not scheme.is_full_precision:
            return f"{scheme}: smoothquant makes activations easier to round; use awq for weights"
        return self.rounding_refusal("smoothquant", scheme)

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
        chosen = select(model.linears(), self.modules, self.skip_modules)
        require_text(calibration)
        with exact_products():
            statistics = workspace.statistics(model, calibration, workspace.device)
        smooth(
            model,
            statistics,
            alpha=self.alpha,
            norms_only=self.groups == "norm",
            chosen=frozenset(chosen),
            scale_from=self.scale_from,
            device=workspace.device,
        )
        return self.round(model, scheme, calibration, workspace)


PLUGIN = SmoothQuant
