"""Full precision: the baseline that every other trial is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.methods.base import ALONE, QuantizationReport, Workspace
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import FULL_PRECISION, QuantScheme


@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """Leaves the model as it is."""

    version: ClassVar[int] = 1
    needs_calibration: ClassVar[bool] = False
    symmetric: ClassVar[bool] = False

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Refuse every scheme that quantizes anything."""
        if scheme.is_full_precision:
            return None
        return f"full precision quantizes nothing; its only scheme is {FULL_PRECISION}"

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Do nothing and report no module."""
        return QuantizationReport(modules=())


PLUGIN = FullPrecision
