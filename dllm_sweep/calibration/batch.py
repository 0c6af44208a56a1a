"""The unit of calibration text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationBatch:
    """Sequences that a model sees during calibration; nobody can change them in place.

    One set of batches serves a whole quantization, and later ones, too: a method that wrote into
    its text would change what everything after it sees. So the tensors are copied in inference
    mode, and torch refuses to write into such a tensor or a view of it anywhere else. Reading is
    free: indexing, arithmetic, `masked_fill`, `float` and `clone` give ordinary tensors. (What goes
    around torch's bookkeeping, `.data` and `.numpy()`, is not refused.)

    Attributes:
        input_ids: (B, L) int64, with mask tokens where the masking put them.
        attention_mask: (B, L) int64, 0 for padding; None if every position is a token.
        masked: (B, L) bool, where a mask token stands; False for padding.
        weights: (B, L) float32, how much each token counts in statistics, 0 for padding; None if
            every token that is not padding counts the same.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    masked: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in self.tensors().items():
            object.__setattr__(self, name, _read_only(tensor))

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be kept; those that are None are left out."""
        parts = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def split(self, batch_size: int) -> Iterator[CalibrationBatch]:
        """Cut into batches of at most `batch_size` sequences, each as long as its longest one.

        Padding must stand on the right.
        """
        for start in range(0, len(self.input_ids), batch_size):
            rows = slice(start, start + batch_size)
            mask = self.attention_mask
            longest = None if mask is None else int(mask[rows].sum(1).max())
            yield CalibrationBatch(
                **{
                    "attention_mask": None,
                    **{name: part[rows, :longest] for name, part in self.tensors().items()},
                }
            )


def _read_only(tensor: Tensor) -> Tensor:
    with torch.inference_mode():
        return tensor if tensor.is_inference() else tensor.clone()
