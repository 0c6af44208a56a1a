"""Keys and values of the tokens outside a block, kept from the block's first step.

Both variants are approximate: the kept keys and values are those of a sequence in which the block
was still masked (Fast-dLLM, arXiv 2505.22618, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_sweep.decoding.window import Windows
from dllm_sweep.models.cache import KeyValueCache


class CachedBlock:
    """Predicts one block: the whole sequence first, then only the columns that are not kept.

    Args:
        windows: The batch; its `decoding.cache` says whether what follows the block is kept
            (`dual`) or computed anew (`prefix`).
        first: The block's first column.
        last: The column behind the block.
    """

    def __init__(self, windows: Windows, first: int, last: int) -> None:
        self.windows, self.first = windows, first
        self.end = last if windows.decoding.cache == "dual" else windows.length
        self.cache, self.rows = KeyValueCache(), list[int]()

    def predict(self, rows: Sequence[int], columns: Tensor) -> Tensor:
        """Predict columns of rows; later calls may leave rows out, never add them.

        Returns:
            (B, W, V) float64 on the model's device.
        """
        windows, device = self.windows, self.windows.model.device
        start, end = (self.first, self.end) if self.rows else (0, windows.length)
        if self.rows and len(rows) < len(self.rows):
            kept = [self.rows.index(row) for row in rows]
            self.cache.select(torch.tensor(kept, device=device))
        self.rows = list(rows)
        shown = windows.shown[self.rows]
        logits = windows.model.logits_cached(
            windows.ids[self.rows, start:end].to(device),
            columns.to(device),
            None if bool(shown.all()) else shown.to(device),
            cache=self.cache,
            start=start,
        )
        windows.count(rows, end, start=start)
        return windows.allowed(logits.double())
