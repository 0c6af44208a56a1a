"""Hide each token with probability t, t uniform in (0, 1] for each sequence: LLaDA's training law.

It is the law of arXiv 2502.09992, section 2; a rate is at least 0.001.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.calibration.base import WEIGHTS, ProgressCallback
from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel


class UniformMasking:
    """Crops with tokens hidden at random rates."""

    options = ("text_field", *WEIGHTS)
    reads_model = False

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Cut crops, then draw a rate for each, then its tokens."""
        from dllm_sweep.calibration import drawing

        crops = drawing.crops(spec, model, generator)
        rates = drawing.uniform_rates(len(crops), generator)
        return drawing.hide(crops, drawing.chosen(rates, spec.length, generator), model)


PLUGIN = UniformMasking()
