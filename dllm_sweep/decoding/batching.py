"""Cutting rows of token ids into padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel

_LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Memory that the logits of one batch may take; they are the largest activation by far."""
_MOST_ROWS = {"cpu": 64, "cuda": 512}


def check_ids(model: DiffusionModel, ids: Sequence[int], what: str) -> None:
    """Make sure that every id is in the model's vocabulary.

    Raises:
        InputError: If one is not.
    """
    size = model.host.config.vocab_size
    wrong = [one for one in ids if not 0 <= one < size]
    if wrong:
        raise InputError(f"{what}: token id {wrong[0]} is outside the vocabulary of {size}")


def check_length(model: DiffusionModel, length: int, what: str) -> None:
    """Make sure that a sequence of `length` tokens fits the model.

    Raises:
        InputError: If it is too long; nothing is ever cut off silently.
    """
    if length > model.max_length:
        raise InputError(
            f"{what}: {length} tokens are more than the model's {model.max_length}; shorten it"
        )


def batches(
    model: DiffusionModel, lengths: Sequence[int], batch_size: int | None
) -> Iterator[list[int]]:
    """Cut rows into batches of similar length, the longest first.

    Args:
        model: Decides the size of a batch by the memory that its logits take.
        lengths: Tokens of each row.
        batch_size: Rows in a batch; None is as many as fit.

    Yields:
        Indices into `lengths`.

    Raises:
        InputError: If `batch_size` is less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        size = batch_size or _rows_that_fit(model, lengths[order[start]])
        yield order[start : start + size]
        start += size


def pad(
    rows: Sequence[Sequence[int]], pad_id: int, *, left: bool, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Stack rows of different lengths.

    Args:
        rows: Token ids.
        pad_id: What stands in the padding; the mask hides it.
        left: Whether padding stands before the row.
        device: Where the tensors go.

    Returns:
        Ids (B, L) int64 and mask (B, L) int64, 1 for tokens; None if nothing is padded.
    """
    longest = max(map(len, rows))
    fill = [[pad_id] * (longest - len(row)) for row in rows]
    ids = [[*gap, *row] if left else [*row, *gap] for gap, row in zip(fill, rows, strict=True)]
    if not any(fill):
        return torch.tensor(ids, dtype=torch.int64, device=device), None
    shown = [
        [0] * len(gap) + [1] * len(row) if left else [1] * len(row) + [0] * len(gap)
        for gap, row in zip(fill, rows, strict=True)
    ]
    return torch.tensor(ids, device=device), torch.tensor(shown, device=device)


def _rows_that_fit(model: DiffusionModel, length: int) -> int:
    kind = "cpu" if model.device.type == "cpu" else "cuda"
    row_bytes: int = max(length, 1) * model.host.config.vocab_size * model.dtype.itemsize
    return max(1, min(_MOST_ROWS[kind], _LOGITS_BYTES[kind] // row_bytes))
