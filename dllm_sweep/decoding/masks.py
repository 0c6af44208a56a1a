"""The masks of the Monte-Carlo likelihood: which tokens of an answer are hidden, how weighted.

The estimator averages over a number of masked tokens l, uniform in 1..L, and a uniform choice
of l of the answer's L tokens (LLaDA, arXiv 2502.09992, equation 6).
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from itertools import combinations

import numpy as np

Mask = tuple[int, ...]
"""Positions in the answer that are hidden, ascending."""


def answer_masks(length: int, *, draws: int, seed: int, item: str) -> dict[Mask, float]:
    """Choose masks for an answer of `length` tokens and the weight of each; the weights sum to 1.

    If there are no more than `draws` different masks, all are given with their probabilities,
    and the likelihood is exact. Otherwise masks are drawn by a generator that depends on the
    arguments alone: all models and batch sizes see the same masks, and so do the choices of one
    item that are equally long. The mask counts are spread evenly (systematic sampling): the
    average share of each count is exactly 1 / `length`, so that the estimate is unbiased.
    """
    if 2**length - 1 <= draws:
        return _all_masks(length)
    generator = _generator(f"{seed}|{draws}|{length}|{item}")
    offset = generator.random()
    counts = [
        min(1 + math.floor(length * (draw + offset) / draws), length) for draw in range(draws)
    ]
    weights: defaultdict[Mask, float] = defaultdict(float)
    for count, keys in zip(counts, generator.random((draws, length)), strict=True):
        weights[tuple(sorted(np.argsort(keys, kind="stable")[:count].tolist()))] += 1 / draws
    return dict(weights)


def _all_masks(length: int) -> dict[Mask, float]:
    return {
        mask: 1 / (length * math.comb(length, count))
        for count in range(1, length + 1)
        for mask in combinations(range(length), count)
    }


def _generator(text: str) -> np.random.Generator:
    # Philox is counter-based: its stream is fixed by the key, on every machine.
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
