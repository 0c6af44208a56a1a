"""A transform of your own: `examples/my_transform.py:MyTransform` in a sweep file.

It turns the input of every linear by a Hadamard matrix and rounds then. From `Rounding` it has
the solvers, the clips and the rounding inside attention with all their parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.methods.rounding import Rounding
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.family import Widths
from dllm_sweep.quant.apply import select
from dllm_sweep.quant.fuse import transform_online
from dllm_sweep.quant.hadamard import without_hadamard
from dllm_sweep.quant.transforms import Hadamard
from dllm_sweep.spec import QuantScheme


@dataclass(frozen=True, kw_only=True)
class MyTransform(Rounding):
    """A Hadamard transform in front of every linear; the parameters are those of `Rounding`."""

    version: ClassVar[int] = 1
    symmetric: ClassVar[bool] = False

    @property
    def needs_calibration(self) -> bool:
        """Hadamard matrices read no text; GPTQ does."""
        return self.solver == "gptq"

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse what cannot be rounded."""
        return self.rounding_refusal("my_transform", scheme)

    def misfit(self, scheme: QuantScheme, widths: Widths) -> str | None:
        """Refuse models with a width that has no Hadamard matrix."""
        attention = widths.heads * widths.head
        sizes = {"the hidden size": widths.hidden, "the width of attention": attention}
        found = without_hadamard(sizes | {"the feed-forward width": widths.ffn})
        return found or super().misfit(scheme, widths)

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place; the transforms alone do not change what it computes."""
        linears = model.linears()
        for name in select(linears, self.modules, self.skip_modules):
            transform_online(model.host, name, Hadamard(linears[name].in_features))
        return self.round(model, scheme, calibration, workspace)
