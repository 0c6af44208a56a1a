"""Hide nothing: clean text, as the methods' authors calibrate on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.calibration.base import ProgressCallback
from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel


class NoMasking:
    """Crops of the text as they are."""

    options = ("text_field",)
    reads_model = False

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Cut crops."""
        import torch

        from dllm_sweep.calibration import drawing

        crops = drawing.crops(spec, model, generator)
        return drawing.hide(crops, torch.zeros_like(crops, dtype=torch.bool), model)


PLUGIN = NoMasking()
