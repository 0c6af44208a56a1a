"""Predicting a block with keys and values that are kept from earlier model calls.

With full attention what is kept is approximate, since it would change with the rest of the
sequence (Fast-dLLM, arXiv 2505.22618, section 3.2). With block-causal attention finished blocks
see nothing of what follows: what is kept of them is exact.
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
        self.cache = KeyValueCache()
        self.rows: Sequence[int] = ()

    def predict(self, rows: Sequence[int], columns: Tensor) -> Tensor:
        """Predict columns of rows; later calls may leave rows out, never add them.

        Returns:
            (B, W, V) in the model's dtype.
        """
        start, end = (self.first, self.end) if self.rows else (0, self.windows.length)
        self.rows = _select(self.cache, self.rows or rows, rows, self.windows)
        logits = _ask(self.windows, self.cache, rows, columns, start, end)
        for row in rows:
            self.windows.count(row, start, end)
        return logits


class FinishedBlocks:
    """Predicts block after block of a model with block-causal attention.

    A block's first call goes over the block before it once more, which was not finished when its
    keys and values were computed last.

    Args:
        windows: The batch.
    """

    def __init__(self, windows: Windows) -> None:
        self.windows, self.cache = windows, KeyValueCache()
        self.rows: Sequence[int] = range(len(windows.lengths))
        self.start = 0
        self._starts = [0] * len(windows.lengths)

    def predict(self, rows: Sequence[int], columns: Tensor, *, first: int, last: int) -> Tensor:
        """Predict columns of rows within the block [first, last).

        Rows that have nothing to write in this block go along, so that their keys are kept.

        Returns:
            (B, W, V) in the model's dtype.
        """
        present = [row for row in self.rows if not self.windows.is_done(row)]
        self.rows = _select(self.cache, self.rows, present, self.windows)
        asked = [present.index(row) for row in rows]
        places = columns.new_full((len(present), columns.shape[1]), first)
        places[asked] = columns
        logits = _ask(self.windows, self.cache, present, places, self.start, last)[asked]
        self.start = first
        for row in rows:
            self.windows.count(row, self._starts[row], last)
            self._starts[row] = first
        return logits


def _select(
    cache: KeyValueCache, before: Sequence[int], rows: Sequence[int], windows: Windows
) -> Sequence[int]:
    """Drop the rows from the cache that are not in `rows` any more; give `rows`."""
    if cache.length and len(rows) < len(before):
        kept = [list(before).index(row) for row in rows]
        cache.select(torch.tensor(kept, device=windows.model.device))
    return list(rows)


def _ask(
    windows: Windows,
    cache: KeyValueCache,
    rows: Sequence[int],
    columns: Tensor,
    start: int,
    end: int,
) -> Tensor:
    """Run the columns [start, end) of rows; give the logits at `columns`."""
    device, shown = windows.model.device, windows.shown[list(rows)]
    return windows.model.logits_cached(
        windows.ids[list(rows), start:end].to(device),
        columns.to(device),
        None if bool(shown.all()) else shown.to(device),
        cache=cache,
        start=start,
    )
