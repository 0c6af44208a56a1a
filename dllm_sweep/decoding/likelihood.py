"""Log-likelihood of an answer under a masked diffusion language model, by masks drawn at random.

The estimators are in `masks.py`; `rows.py` makes the model calls.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dllm_sweep.decoding.base import ItemsCallback
from dllm_sweep.decoding.batching import check_ids, check_length
from dllm_sweep.decoding.masks import ESTIMATORS, Mask, answer_masks, mask_draws
from dllm_sweep.decoding.rows import Row, Term, plain_sums, row_sums
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.models.base import DiffusionModel

Pair = tuple[Sequence[int], Sequence[int]]

_TOKENS_AT_ONCE = 2**20
"""Tokens of masked rows that are prepared together: it bounds the memory that preparing takes."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The log-likelihood of one answer, and what it took.

    Attributes:
        value: In nats.
        rows: Model inputs that were run; one that several choices share counts for the first.
        token_forwards: Their tokens.
    """

    value: float
    rows: int
    token_forwards: int


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """How likelihoods are estimated.

    Attributes:
        draws: Masks for each answer.
        seed: Seed of the masks.
        estimator: `llada` or `dream`.
        cfg_scale: Classifier-free guidance w: logits are u + (w + 1)(c - u), where u are those of
            the masked context; 0 is off.
        plain: Whether to take the reference path: `draws` rows for each answer one after the
            other, all logits, nothing shared.
    """

    draws: int = 128
    seed: int = 0
    estimator: str = "llada"
    cfg_scale: float = 0.0
    plain: bool = False


def log_likelihood(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    *,
    draws: int = 128,
    seed: int = 0,
    items: Sequence[str] | None = None,
    estimator: str = "llada",
    cfg_scale: float = 0.0,
    batch_size: int | None = None,
    plain: bool = False,
    progress: ItemsCallback | None = None,
) -> list[float]:
    """Estimate the log-likelihood of each answer behind its context, in nats.

    The estimate is a lower bound's, unbiased for any number of draws. It is the exact expectation
    over masks if there are at most `draws` of them (always for one hidden token). In float32 it
    does not depend on the batch size or on the other pairs.

    Args:
        model: The model.
        pairs: Token ids of contexts, which are never masked, and answers; they are not changed.
            `dream` never hides the first and the last token of the two together: its contexts
            begin with a token for the beginning, its answers end with one for the end.
        draws: Masks for each answer.
        seed: Seed of the masks.
        items: What each pair belongs to: pairs of one item and of equal answer length share
            their masks. None makes pairs with equal contexts one item.
        estimator: `llada` (the number of hidden tokens is uniform, arXiv 2502.09992, equation 6)
            or `dream` (each token is hidden with probability t, t uniform, arXiv 2508.15487).
        cfg_scale: Classifier-free guidance w: logits are u + (w + 1)(c - u), where u are those of
            the masked context; 0 is off.
        batch_size: Rows in a batch; None is as many as fit.
        plain: Whether to take the reference path: `draws` rows for each answer, nothing shared,
            logits of all positions. It gives the same values and exists to check them.
        progress: Called with (pairs done, pairs in all), now and then.

    Raises:
        InputError: If `draws` is less than 1 or a pair does not fit the model.
        UnknownName: If there is no such estimator.
    """
    how = Estimation(draws=draws, seed=seed, estimator=estimator, cfg_scale=cfg_scale, plain=plain)
    found = score_pairs(model, pairs, how, items=items, batch_size=batch_size, progress=progress)
    return [one.value for one in found]


def score_pairs(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    how: Estimation,
    *,
    items: Sequence[str] | None = None,
    batch_size: int | None = None,
    progress: ItemsCallback | None = None,
) -> list[Scored]:
    """Do what `log_likelihood` does, and say what each answer took.

    Raises:
        InputError: As `log_likelihood`.
        UnknownName: As `log_likelihood`.
    """
    names = [_fingerprint(context) for context, _ in pairs] if items is None else items
    _check(model, pairs, names, how)
    found: dict[int, Scored] = {}
    for numbers in _parts(pairs, names, how):
        score = _score_plainly if how.plain else _score
        found.update(score(model, pairs, names, numbers, how, batch_size))
        if progress is not None:
            progress(len(found), len(pairs))
    return [found[number] for number in range(len(pairs))]


def _parts(pairs: Sequence[Pair], names: Sequence[str], how: Estimation) -> Iterator[list[int]]:
    """Cut the pairs into parts that are prepared together; an item's pairs stay in one part."""
    groups: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        groups.setdefault(name, []).append(number)
    part: list[int] = []
    tokens = 0
    for group in groups.values():
        size = sum(how.draws * sum(map(len, pairs[number])) for number in group)
        if part and tokens + size > _TOKENS_AT_ONCE:
            yield part
            part, tokens = [], 0
        part.extend(group)
        tokens += size
    if part:
        yield part


def _score(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    names: Sequence[str],
    numbers: Sequence[int],
    how: Estimation,
    batch_size: int | None,
) -> dict[int, Scored]:
    """Score some pairs, running each different model input of an item once."""
    shared: dict[tuple[str, int, tuple[int, ...]], list[Term]] = {}
    for number in numbers:
        context, answer = pairs[number]
        for mask, coefficient in _masks(pairs[number], names[number], how):
            shown, term = _hide(number, context, answer, mask, coefficient, model.special.mask_id)
            # Choices of one item look alike once they are hidden. Rows of other items are not
            # shared, so that what an item takes does not depend on how a task is cut.
            shared.setdefault((names[number], len(context), shown), []).append(term)
    rows = [
        Row(ids=shown, context=context, terms=tuple(terms))
        for (_, context, shown), terms in shared.items()
    ]
    return _sum_up(numbers, rows, row_sums(model, rows, how.cfg_scale, batch_size), how)


def _score_plainly(
    model: DiffusionModel,
    pairs: Sequence[Pair],
    names: Sequence[str],
    numbers: Sequence[int],
    how: Estimation,
    batch_size: int | None,
) -> dict[int, Scored]:
    """Score some pairs one after the other, one row for each draw."""
    found: dict[int, Scored] = {}
    for number in numbers:
        context, answer = pairs[number]
        rows = []
        for mask, coefficient in _masks(pairs[number], names[number], how):
            shown, term = _hide(number, context, answer, mask, coefficient, model.special.mask_id)
            rows.append(Row(ids=shown, context=len(context), terms=(term,)))
        sums = plain_sums(model, rows, how.cfg_scale, batch_size)
        found.update(_sum_up([number], rows, sums, how))
    return found


def _masks(pair: Pair, name: str, how: Estimation) -> list[tuple[Mask, float]]:
    """Masks of one answer by places in the answer, each with its coefficient."""
    places = _hidable(pair, how.estimator)
    length, draws, seed = len(places), how.draws, how.seed
    if how.plain:
        chosen = mask_draws(length, draws=draws, seed=seed, item=name, estimator=how.estimator)
    else:
        masks = answer_masks(length, draws=draws, seed=seed, item=name, estimator=how.estimator)
        chosen = list(masks.items())
    return [(tuple(places[one] for one in mask), coefficient) for mask, coefficient in chosen]


def _hidable(pair: Pair, estimator: str) -> range:
    """Places in the answer that may be hidden."""
    context, answer = pair
    if estimator == "llada":
        return range(len(answer))
    return range(0 if context else 1, max(len(answer) - 1, 0))


def _hide(
    number: int,
    context: Sequence[int],
    answer: Sequence[int],
    mask: Mask,
    coefficient: float,
    mask_id: int,
) -> tuple[tuple[int, ...], Term]:
    """Hide some tokens of the answer; give the row and what stood at its hidden positions."""
    row = [*context, *answer]
    hidden = tuple((len(context) + place, answer[place]) for place in mask)
    for position, _ in hidden:
        row[position] = mask_id
    return tuple(row), Term(number=number, coefficient=coefficient, hidden=hidden)


def _sum_up(
    numbers: Sequence[int],
    rows: Sequence[Row],
    sums: Sequence[Sequence[float]],
    how: Estimation,
) -> dict[int, Scored]:
    parts: dict[int, list[float]] = {number: [] for number in numbers}
    taken: dict[int, list[int]] = {number: [] for number in numbers}
    for row, values in zip(rows, sums, strict=True):
        taken[row.terms[0].number].append(len(row.ids))
        for term, value in zip(row.terms, values, strict=True):
            parts[term.number].append(term.coefficient * value)
    calls = 1 if how.cfg_scale == 0 else 2
    return {
        number: Scored(
            value=math.fsum(parts[number]),
            rows=calls * len(taken[number]),
            token_forwards=calls * sum(taken[number]),
        )
        for number in numbers
    }


def _fingerprint(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()


def _check(
    model: DiffusionModel, pairs: Sequence[Pair], items: Sequence[str], how: Estimation
) -> None:
    if how.draws < 1:
        raise InputError(f"draws {how.draws} must be at least 1")
    if how.estimator not in ESTIMATORS:
        raise UnknownName("likelihood estimator", how.estimator, ESTIMATORS)
    if not (math.isfinite(how.cfg_scale) and how.cfg_scale >= 0):
        raise InputError(f"cfg_scale {how.cfg_scale} must be finite and at least 0")
    if len(items) != len(pairs):
        raise InputError(f"{len(items)} item names for {len(pairs)} pairs: give one each, or none")
    for number, (context, answer) in enumerate(pairs):
        check_ids(model, [*context, *answer], f"pair {number}")
        check_length(model, len(context) + len(answer), f"pair {number}")
