"""Model calls of the likelihoods: log-probabilities of hidden tokens, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dllm_sweep.decoding.batching import batches, pad
from dllm_sweep.models.base import DiffusionModel

_WIDE = 2**25
"""Logits that are turned into float64 at once: it bounds the memory of normalizing them."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """What one row adds to the estimate of one answer.

    Attributes:
        number: The answer, by its place among the pairs.
        coefficient: What the sum of log-probabilities is multiplied by.
        hidden: Position in the row and the token that stood there, for each hidden token.
    """

    number: int
    coefficient: float
    hidden: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model input and the answers it counts for.

    Attributes:
        ids: The tokens, hidden ones as mask tokens.
        context: How many tokens at the front are context.
        terms: What it adds to which answer.
    """

    ids: tuple[int, ...]
    context: int
    terms: tuple[Term, ...]

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Positions whose prediction is read, ascending."""
        return tuple(sorted({position for term in self.terms for position, _ in term.hidden}))


def row_sums(
    model: DiffusionModel, rows: Sequence[Row], cfg_scale: float, batch_size: int | None
) -> list[list[float]]:
    """Sum the log-probabilities of each term's hidden tokens, term by term for each row.

    Rows run in batches of a similar length, and only hidden positions are predicted.

    Args:
        model: The model.
        rows: Model inputs; each has at least one hidden token.
        cfg_scale: Classifier-free guidance; 0 is off.
        batch_size: Rows in a batch; None is as many as fit.

    Raises:
        InputError: If `batch_size` is less than 1.
    """
    reads = [len(row.positions) for row in rows]
    found: dict[int, list[float]] = {}
    for chosen in batches(model, [len(row.ids) for row in rows], batch_size, reads):
        some = [rows[index] for index in chosen]
        found.update(zip(chosen, _read(model, some, cfg_scale), strict=True))
    return [found[index] for index in range(len(rows))]


def plain_sums(
    model: DiffusionModel, rows: Sequence[Row], cfg_scale: float, batch_size: int | None
) -> list[list[float]]:
    """Do what `row_sums` does by the shortest way: all logits, then what is needed of them.

    Rows may hide nothing. This is the reference in tests and benchmarks.

    Raises:
        InputError: If `batch_size` is less than 1.
    """
    found: dict[int, list[float]] = {}
    for chosen in batches(model, [len(row.ids) for row in rows], batch_size):
        some = [rows[index] for index in chosen]
        logits = _guided(model, some, cfg_scale, model.logits).double().log_softmax(-1)
        for index, row, values in zip(chosen, some, logits, strict=True):
            found[index] = [
                sum(float(values[position, token]) for position, token in term.hidden)
                for term in row.terms
            ]
    return [found[index] for index in range(len(rows))]


@torch.inference_mode()
def _read(model: DiffusionModel, rows: Sequence[Row], cfg_scale: float) -> list[list[float]]:
    """Run one batch and sum up the log-probabilities that its terms ask for."""
    widest = max(len(row.positions) for row in rows)
    # A row with fewer hidden tokens reads its last one again.
    slots = [[*row.positions, *row.positions[-1:] * (widest - len(row.positions))] for row in rows]
    positions = torch.tensor(slots, device=model.device)

    def predict(ids: Tensor, shown: Tensor | None) -> Tensor:
        return model.logits_at(ids, positions, shown)

    logits = _guided(model, rows, cfg_scale, predict)
    totals = _log_sums(logits)
    terms = [(line, term) for line, row in enumerate(rows) for term in row.terms]
    slot_of = [{position: slot for slot, position in enumerate(row.positions)} for row in rows]
    index, line, slot, token = torch.tensor(
        [
            (number, line, slot_of[line][position], token)
            for number, (line, term) in enumerate(terms)
            for position, token in term.hidden
        ],
        device=model.device,
    ).T
    values = logits[line, slot, token].double() - totals[line, slot]
    sums = torch.zeros(len(terms), dtype=torch.float64)
    flat = iter(sums.index_add(0, index.cpu(), values.cpu()).tolist())
    return [[next(flat) for _ in row.terms] for row in rows]


def _log_sums(logits: Tensor) -> Tensor:
    """Log of the sum of exponentials, (B, W) float64, of logits (B, W, V)."""
    flat = logits.flatten(0, 1)
    parts = flat.split(max(_WIDE // flat.shape[-1], 1))
    return torch.cat([part.double().logsumexp(-1) for part in parts]).view(logits.shape[:-1])


@torch.inference_mode()
def _guided(
    model: DiffusionModel,
    rows: Sequence[Row],
    cfg_scale: float,
    predict: Callable[[Tensor, Tensor | None], Tensor],
) -> Tensor:
    """Predict a batch, with classifier-free guidance if asked for."""
    pad_id, mask_id = model.special.pad_id, model.special.mask_id
    ids, shown = pad([row.ids for row in rows], pad_id, left=False, device=model.device)
    logits = predict(ids, shown)
    if cfg_scale == 0:
        return logits
    bare = [[*[mask_id] * row.context, *row.ids[row.context :]] for row in rows]
    without = predict(pad(bare, pad_id, left=False, device=model.device)[0], shown)
    return without + (cfg_scale + 1) * (logits - without)
