"""Log-likelihood of an answer under a masked diffusion language model (arXiv 2502.09992, 2.4)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dllm_sweep.decoding.base import ItemsCallback
from dllm_sweep.decoding.batching import batches, check_ids, check_length, pad
from dllm_sweep.decoding.masks import Mask, answer_masks
from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class _Row:
    """One model input: an answer behind its context with some of its tokens hidden."""

    pair: int
    mask: Mask
    weight: float


def log_likelihood(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    *,
    draws: int = 128,
    seed: int = 0,
    items: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: ItemsCallback | None = None,
) -> list[float]:
    """Estimate the log-likelihood of each answer behind its context, in nats.

    The estimate is a lower bound's: the mean over masks of L / l times the log-probability of
    the l hidden tokens. It is exact if there are at most `draws` masks (always for one token).
    In float32 it does not depend on the batch size or on the other pairs.

    Args:
        model: The model.
        pairs: Token ids of contexts, which are never masked, and answers; they are not changed.
        draws: Masks for each answer.
        seed: Seed of the masks.
        items: What each pair belongs to: pairs of one item and of equal answer length share
            their masks. None makes pairs with equal contexts one item.
        batch_size: Rows in a batch; None is as many as fit.
        progress: Called after each batch with (rows done, rows in all).

    Raises:
        InputError: If `draws` is less than 1 or a pair does not fit the model.
    """
    if draws < 1:
        raise InputError(f"draws {draws} must be at least 1")
    names = [_fingerprint(context) for context, _ in pairs] if items is None else items
    _check_pairs(model, pairs, names)
    rows = [
        _Row(number, mask, weight)
        for number, ((_, answer), item) in enumerate(zip(pairs, names, strict=True))
        for mask, weight in answer_masks(len(answer), draws=draws, seed=seed, item=item).items()
    ]
    lengths = [sum(map(len, pairs[row.pair])) for row in rows]
    terms: list[list[float]] = [[] for _ in pairs]
    done = 0
    for chosen in batches(model, lengths, batch_size):
        batch = [rows[index] for index in chosen]
        for row, value in zip(batch, _score(model, pairs, batch), strict=True):
            answer_length = len(pairs[row.pair][1])
            terms[row.pair].append(row.weight * value * answer_length / len(row.mask))
        done += len(batch)
        if progress is not None:
            progress(done, len(rows))
    return [math.fsum(values) for values in terms]


@torch.inference_mode()
def _score(model: DiffusionModel, pairs: Sequence[Pair], batch: Sequence[_Row]) -> list[float]:
    """Sum the log-probabilities of each row's hidden tokens."""
    inputs = [_masked_input(pairs[row.pair], row.mask, model.special.mask_id) for row in batch]
    ids, shown = pad(inputs, model.special.pad_id, left=False, device=model.device)
    logits = model.logits(ids, shown)
    index, position, target = _hidden(pairs, batch, model.device)
    hidden = logits[index, position].double()
    found = hidden.gather(-1, target[:, None])[:, 0] - hidden.logsumexp(-1)
    sums = torch.zeros(len(batch), dtype=torch.float64)
    totals: list[float] = sums.index_add(0, index.cpu(), found.cpu()).tolist()
    return totals


def _hidden(
    pairs: Sequence[Pair], batch: Sequence[_Row], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """List every hidden token: its row, its position in the row, the token that stood there."""
    found = [
        (index, len(context) + place, answer[place])
        for index, row in enumerate(batch)
        for context, answer in (pairs[row.pair],)
        for place in row.mask
    ]
    index, position, target = torch.tensor(found, dtype=torch.int64, device=device).T
    return index, position, target


def _masked_input(pair: Pair, mask: Mask, mask_id: int) -> list[int]:
    context, answer = pair
    row = [*context, *answer]
    for place in mask:
        row[len(context) + place] = mask_id
    return row


def _fingerprint(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def _check_pairs(model: DiffusionModel, pairs: Sequence[Pair], items: Sequence[str]) -> None:
    if len(items) != len(pairs):
        raise InputError(f"{len(items)} item names for {len(pairs)} pairs: give one each, or none")
    for number, (context, answer) in enumerate(pairs):
        check_ids(model, [*context, *answer], f"pair {number}")
        check_length(model, len(context) + len(answer), f"pair {number}")
