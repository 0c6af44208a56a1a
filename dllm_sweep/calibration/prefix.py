"""Leave the first part of each sequence visible; hide each later token with probability t.

Of N sequences the i-th, counted from 0, has t = (i + 1) / N: an even grid instead of chance. This
is the masked calibration simulation of Quant-dLLM (arXiv 2510.03274), with a quarter visible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.calibration.base import WEIGHTS, ProgressCallback
from dllm_sweep.calibration.options import prompt_tokens
from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel


class PrefixMasking:
    """Crops as prompts with masked continuations."""

    options = ("text_field", "prompt_share", *WEIGHTS)
    reads_model = False

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Cut crops, then draw the tokens of each at its own rate."""
        from dllm_sweep.calibration import drawing

        crops = drawing.crops(spec, model, generator)
        masked = drawing.chosen(drawing.even_rates(len(crops)), spec.length, generator)
        masked[:, : prompt_tokens(spec)] = False
        return drawing.hide(crops, masked, model)


PLUGIN = PrefixMasking()
