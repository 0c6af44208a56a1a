"""The unit of calibration text."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class CalibrationBatch:
    """Sequences that a model sees during calibration; shared, never changed in place.

    Attributes:
        input_ids: (B, L) int64, with mask tokens where the masking put them.
        attention_mask: (B, L) int64, 0 for padding; None if every position is a token.
        masked: (B, L) bool, where a mask token stands.
        weights: (B, L) float32, how much each token counts in statistics, 0 for padding; None if
            every token that is not padding counts the same.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    masked: Tensor
    weights: Tensor | None = None
