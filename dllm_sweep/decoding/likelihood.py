"""Log-likelihood of an answer under a masked diffusion language model (arXiv 2502.09992, 2.4)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from dllm_sweep.decoding.base import ItemsCallback
from dllm_sweep.decoding.batching import batches, check_ids, check_length, pad
from dllm_sweep.decoding.masks import Mask, answer_masks
from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel

Pair = tuple[Sequence[int], Sequence[int]]


_ROWS_AT_ONCE = 4096
"""Masked answers that are prepared together: it bounds the memory that preparing takes."""


@dataclass(frozen=True)
class _Estimate:
    """One pair with its masks and their weights."""

    pair: Pair
    masks: dict[Mask, float]


@dataclass(frozen=True)
class _Term:
    """What one model input adds to the estimate of one pair."""

    number: int
    """The pair, by its place."""
    factor: float
    """Weight of the mask times L / l."""
    hidden: tuple[tuple[int, int], ...]
    """Position in the row and the token that stood there, for each hidden token."""


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
        progress: Called with (pairs done, pairs in all), now and then.

    Raises:
        InputError: If `draws` is less than 1 or a pair does not fit the model.
    """
    if draws < 1:
        raise InputError(f"draws {draws} must be at least 1")
    names = [_fingerprint(context) for context, _ in pairs] if items is None else items
    _check_pairs(model, pairs, names)
    values: list[float] = []
    for chunk in _chunks(pairs, names, draws, seed):
        values.extend(_estimate(model, chunk, batch_size))
        if progress is not None:
            progress(len(values), len(pairs))
    return values


def _chunks(
    pairs: Sequence[Pair], names: Sequence[str], draws: int, seed: int
) -> Iterator[list[_Estimate]]:
    chunk: list[_Estimate] = []
    rows = 0
    for pair, item in zip(pairs, names, strict=True):
        masks = answer_masks(len(pair[1]), draws=draws, seed=seed, item=item)
        chunk.append(_Estimate(pair, masks))
        rows += len(masks)
        if rows >= _ROWS_AT_ONCE:
            yield chunk
            chunk, rows = [], 0
    if chunk:
        yield chunk


def _estimate(
    model: DiffusionModel, chunk: Sequence[_Estimate], batch_size: int | None
) -> list[float]:
    # Choices of one item look alike once they are hidden: each different input runs only once.
    readings: dict[tuple[int, ...], list[_Term]] = {}
    for number, one in enumerate(chunk):
        for mask, weight in one.masks.items():
            shown, hidden = _hide(one.pair, mask, model.special.mask_id)
            term = _Term(number, weight * len(one.pair[1]) / len(mask), hidden)
            readings.setdefault(shown, []).append(term)
    rows = list(readings)
    parts: list[list[float]] = [[] for _ in chunk]
    for chosen in batches(model, [len(row) for row in rows], batch_size):
        terms = [readings[rows[index]] for index in chosen]
        sums = _score(model, [rows[index] for index in chosen], terms)
        for term, value in zip((term for row in terms for term in row), sums, strict=True):
            parts[term.number].append(term.factor * value)
    return [math.fsum(values) for values in parts]


@torch.inference_mode()
def _score(
    model: DiffusionModel, rows: Sequence[Sequence[int]], terms: Sequence[Sequence[_Term]]
) -> list[float]:
    """Sum the log-probabilities of each term's hidden tokens, the terms row by row."""
    ids, shown = pad(rows, model.special.pad_id, left=False, device=model.device)
    logits = model.logits(ids, shown)
    flat = [(row, term) for row, ones in enumerate(terms) for term in ones]
    found = [
        (number, row, *place) for number, (row, term) in enumerate(flat) for place in term.hidden
    ]
    index, row, position, target = torch.tensor(found, device=model.device).T
    hidden = logits[row, position].double()
    values = hidden.gather(-1, target[:, None])[:, 0] - hidden.logsumexp(-1)
    sums = torch.zeros(len(flat), dtype=torch.float64)
    totals: list[float] = sums.index_add(0, index.cpu(), values.cpu()).tolist()
    return totals


def _hide(
    pair: Pair, mask: Mask, mask_id: int
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Hide some tokens of the answer; give the row and what stood at its hidden positions."""
    context, answer = pair
    row = [*context, *answer]
    hidden = tuple((len(context) + place, answer[place]) for place in mask)
    for position, _ in hidden:
        row[position] = mask_id
    return tuple(row), hidden


def _fingerprint(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def _check_pairs(model: DiffusionModel, pairs: Sequence[Pair], items: Sequence[str]) -> None:
    if len(items) != len(pairs):
        raise InputError(f"{len(items)} item names for {len(pairs)} pairs: give one each, or none")
    for number, (context, answer) in enumerate(pairs):
        check_ids(model, [*context, *answer], f"pair {number}")
        check_length(model, len(context) + len(answer), f"pair {number}")
