"""Cutting rows of token ids into padded batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.models.base import DiffusionModel

_TOKENS = {"cpu": 2**12, "cuda": 2**14}
"""Tokens in a batch, padding included: enough to keep the device busy, little enough to fit."""
_LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**32}
"""Memory that the logits of one batch may take; they are the largest activation by far."""


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


def begin_of_text(model: DiffusionModel) -> list[int]:
    """Give the token that stands before every text of the model's family; [] where none does.

    Raises:
        CheckpointError: If the family has one and the checkpoint's tokenizer does not name it.
    """
    if not model.family.starts_with_bos:
        return []
    if model.special.bos_id is None:
        raise CheckpointError(
            f"model {model.name!r}: texts of the family {model.family.name!r} begin with"
            " begin-of-text, and the checkpoint has no tokenizer that names it"
        )
    return [model.special.bos_id]


def batches(
    model: DiffusionModel,
    lengths: Sequence[int],
    batch_size: int | None,
    reads: Sequence[int] | None = None,
) -> Iterator[list[int]]:
    """Cut rows into batches of similar length, the longest first.

    A batch holds as many rows as a budget of tokens and one of memory for logits allow, and at
    least one. The budgets depend on the kind of device alone, never on what is free at the moment,
    so that a run can be repeated.

    Args:
        model: Says how wide logits are and where they lie.
        lengths: Tokens of each row.
        batch_size: Rows in a batch; None is as many as fit.
        reads: Positions of each row whose logits are asked for; None is all of them.

    Yields:
        Indices into `lengths`.

    Raises:
        InputError: If `batch_size` is less than 1.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size {batch_size} must be at least 1")
    reads = lengths if reads is None else reads
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], -reads[row]))
    start = 0
    while start < len(order):
        end = start + (batch_size or _rows_that_fit(model, order[start:], lengths, reads))
        yield order[start:end]
        start = end


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


def _rows_that_fit(
    model: DiffusionModel, order: Sequence[int], lengths: Sequence[int], reads: Sequence[int]
) -> int:
    """Count the rows at the front of `order`, the longest first, that make one batch."""
    kind = "cpu" if model.device.type == "cpu" else "cuda"
    position_bytes = model.host.config.vocab_size * model.dtype.itemsize
    widest, tokens = 1, max(lengths[order[0]], 1)
    for rows, row in enumerate(order, start=1):
        widest = max(widest, reads[row])
        too_large = rows * widest * position_bytes > _LOGITS_BYTES[kind]
        if rows > 1 and (rows * tokens > _TOKENS[kind] or too_large):
            return rows - 1
    return len(order)
