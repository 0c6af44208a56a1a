"""What a masking mode is. One mode is one file beside this one.

Nothing here needs torch, nor do the modes' files until they draw: planning reads which options a
mode has.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel

ProgressCallback = Callable[[int, int], None]
"""Called with (pieces of work done, pieces in all)."""

WEIGHTS = ("masked_weight", "visible_weight")
"""Options of every mode that hides tokens."""


class Masking(Protocol):
    """How calibration sequences are made of text, and what of them is hidden.

    The module's `PLUGIN`.
    """

    options: tuple[str, ...]
    """Fields of `CalibrationSpec` that this mode reads and others may not; any other that differs
    from its default is refused."""
    reads_model: bool
    """Whether the sequences depend on what the model predicts, not on its tokenizer alone."""

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Make all sequences.

        Args:
            spec: The text and the mode's options, checked.
            model: Its tokenizer reads the text.
            generator: The only source of chance, seeded by `spec`.
            progress: Called now and then where it takes long.

        Returns:
            One batch of `spec.samples` sequences, padded on the right, without weights.

        Raises:
            CalibrationError: If the text cannot be read or is too short.
        """
