"""The masks of the Monte-Carlo likelihoods: which tokens of an answer are hidden, how weighted.

Both estimators are sums over masks of a coefficient times the log-probability of the hidden
tokens, and the coefficient c(l) of a mask depends only on its number l of hidden tokens, of L:

- `llada` (arXiv 2502.09992, equation 6): l is uniform in 1..L, then the mask is uniform among
  those of l tokens; a drawn mask counts L / l.
- `dream` (arXiv 2508.15487): each token is hidden with probability p = (1 - eps) t + eps, t uniform
  in [0, 1); a drawn mask counts 1 / p.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable
from itertools import combinations, islice

import numpy as np

from dllm_sweep.errors import UnknownName

Mask = tuple[int, ...]
"""Positions in the answer that are hidden, ascending."""

_EPSILON = 1e-3
"""Lowest probability with which Dream's estimator hides a token."""


def answer_masks(
    length: int, *, draws: int, seed: int, item: str, estimator: str = "llada"
) -> dict[Mask, float]:
    """Choose masks for an answer of `length` tokens, each with its coefficient.

    The estimate of the log-likelihood is the sum over masks of coefficient times log-probability
    of the hidden tokens. If there are no more than `draws` different masks, all are given with
    their expected coefficients, and the estimate is the exact expectation. Otherwise masks are
    drawn as by `mask_draws`, and equal ones are joined.

    Raises:
        UnknownName: If there is no such estimator.
    """
    if _are_few(length, draws):
        return _all_masks(length, estimator)
    joined: defaultdict[Mask, float] = defaultdict(float)
    for mask, coefficient in mask_draws(
        length, draws=draws, seed=seed, item=item, estimator=estimator
    ):
        joined[mask] += coefficient
    joined.pop((), None)
    return dict(joined)


def mask_draws(
    length: int, *, draws: int, seed: int, item: str, estimator: str = "llada"
) -> list[tuple[Mask, float]]:
    """Give the masks of `answer_masks` one by one: always `draws` of them, with repetitions.

    They come from a generator that depends on the arguments alone: all models and batch sizes see
    the same masks, and so do the choices of one item that are equally long. Mask counts (llada)
    and probabilities (dream) are spread evenly by systematic sampling, which leaves the average
    share of each exact, so that the estimate is unbiased. Where all masks are listed, they are
    repeated in turn until there are `draws`.

    Raises:
        UnknownName: If there is no such estimator.
    """
    if _are_few(length, draws):
        return _repeated(_all_masks(length, estimator), draws)
    # An item's LLaDA masks stay what they were before there was a second estimator.
    kind = "" if estimator == "llada" else f"{estimator}|"
    generator = _generator(f"{kind}{seed}|{draws}|{length}|{item}")
    return _drawn(estimator)(length, draws, generator)


def expected_coefficient(count: int, length: int, estimator: str) -> float:
    """Expected coefficient of one mask that hides `count` of `length` tokens.

    It is 1 / (l C(L, l)) for `llada`, and the integral of p^(l-1) (1-p)^(L-l) over p uniform in
    [eps, 1] for `dream`, which tends to the same as eps tends to 0.

    Raises:
        UnknownName: If there is no such estimator.
    """
    _drawn(estimator)
    whole = 1 / (count * math.comb(length, count))
    if estimator == "llada":
        return whole
    # From 0 to 1 it is the Beta function, `whole`; below eps it is a short alternating sum.
    below = math.fsum(
        (-1) ** k * math.comb(length - count, k) * _EPSILON ** (count + k) / (count + k)
        for k in range(length - count + 1)
    )
    return (whole - below) / (1 - _EPSILON)


def _are_few(length: int, draws: int) -> bool:
    masks: int = 2**length - 1
    return masks <= draws


def _all_masks(length: int, estimator: str) -> dict[Mask, float]:
    counts = range(1, length + 1)
    each = [expected_coefficient(count, length, estimator) for count in counts]
    return {
        mask: coefficient
        for count, coefficient in zip(counts, each, strict=True)
        for mask in combinations(range(length), count)
    }


def _repeated(masks: dict[Mask, float], draws: int) -> list[tuple[Mask, float]]:
    """Repeat the masks in turn, each repetition with its part of the coefficient."""
    rounds, rest = divmod(draws, max(len(masks), 1))
    shared = {
        mask: coefficient / (rounds + (place < rest))
        for place, (mask, coefficient) in enumerate(masks.items())
    }
    return list(islice((one for _ in range(rounds + 1) for one in shared.items()), draws))


def _llada(length: int, draws: int, generator: np.random.Generator) -> list[tuple[Mask, float]]:
    offset = generator.random()
    counts = [
        min(1 + math.floor(length * (draw + offset) / draws), length) for draw in range(draws)
    ]
    return [
        (tuple(sorted(np.argsort(keys, kind="stable")[:count].tolist())), length / count / draws)
        for count, keys in zip(counts, generator.random((draws, length)), strict=True)
    ]


def _dream(length: int, draws: int, generator: np.random.Generator) -> list[tuple[Mask, float]]:
    times = (generator.random() + np.arange(draws) / draws) % 1.0
    shares = (1 - _EPSILON) * times + _EPSILON
    hidden = generator.random((draws, length)) < shares[:, None]
    return [
        (tuple(np.flatnonzero(row).tolist()), 1 / draws / share)
        for row, share in zip(hidden, shares.tolist(), strict=True)
    ]


_Draw = Callable[[int, int, np.random.Generator], list[tuple[Mask, float]]]
_DRAWS: dict[str, _Draw] = {"llada": _llada, "dream": _dream}
ESTIMATORS = tuple(_DRAWS)
"""What `estimator` may be."""


def _drawn(estimator: str) -> _Draw:
    if estimator not in _DRAWS:
        raise UnknownName("likelihood estimator", estimator, ESTIMATORS)
    return _DRAWS[estimator]


def _generator(text: str) -> np.random.Generator:
    # Philox is counter-based: its stream is fixed by the key, on every machine.
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
