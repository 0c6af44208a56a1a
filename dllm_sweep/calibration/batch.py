"""The unit of calibration text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class CalibrationBatch:
    """Sequences that a model sees during calibration; nobody can change them in place.

    One set of batches serves a whole quantization, and later ones, too: a method that wrote into
    its text would change what everything after it sees. So whoever reads a tensor gets a copy, made
    in inference mode: writing into it, or into a view of it, raises RuntimeError instead of being
    lost without a word, and what gets around that (`.detach()`, `.numpy()`) reaches the copy alone.
    Indexing, arithmetic, `masked_fill`, `float` and `clone` give ordinary tensors; autograd needs
    one of these.

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
            object.__setattr__(self, name, tensor)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not isinstance(value, Tensor):
            return value
        with torch.inference_mode():
            return value.clone()

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be kept; those that are None are left out."""
        parts = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part is not None}

    def split(self, batch_size: int) -> Iterator[CalibrationBatch]:
        """Cut into batches of at most `batch_size` sequences, each as long as its longest one.

        Padding must stand on the right.
        """
        parts, mask = self.tensors(), self.attention_mask
        for start in range(0, len(self.input_ids), batch_size):
            rows = slice(start, start + batch_size)
            longest = None if mask is None else int(mask[rows].sum(1).max())
            cut = {name: part[rows, :longest] for name, part in parts.items()}
            yield CalibrationBatch(**{"attention_mask": None, **cut})
