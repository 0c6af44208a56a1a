"""An upper bound on the negative log-likelihood of running text (arXiv 2502.09992, equation 4).

A masked diffusion model has no left-to-right likelihood. What it has is the bound it is trained
on: the mean over t uniform in (0, 1] of 1/t times the cross-entropy of the tokens that were hidden,
each with probability t. Given the number l of hidden tokens, of L, every choice of them is equally
likely, and the integral over t gives all numbers the same weight: the bound is the mean over l
uniform in 1..L of L/l times the cross-entropy. That form is drawn here: it has the same mean and
no 1/t, whose variance is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_sweep.decoding.base import ItemsCallback
from dllm_sweep.decoding.batching import begin_of_text
from dllm_sweep.decoding.likelihood import Estimation, Scored, score_pairs
from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The bound on one text.

    Attributes:
        nats: Estimate of the bound on the negative log-likelihood of the whole text, in nats.
        tokens: Tokens of the text.
        rows: Model inputs that were run.
        token_forwards: Their tokens.
    """

    nats: float
    tokens: int
    rows: int
    token_forwards: int

    @property
    def per_token(self) -> float:
        """Nats for each token; its exponential bounds the perplexity per token from above."""
        return self.nats / self.tokens if self.tokens else 0.0


def nll_bound(
    model: DiffusionModel,
    texts: Sequence[Sequence[int]],
    *,
    draws: int = 128,
    seed: int = 0,
    items: Sequence[str] | None = None,
    window: int | None = None,
    batch_size: int | None = None,
    plain: bool = False,
    progress: ItemsCallback | None = None,
) -> list[Bound]:
    """Estimate an upper bound on the negative log-likelihood of each text.

    Long texts are cut into windows that are scored apart, so no token sees one of another window.
    A window with at most `draws` masks gives the exact bound, any other an unbiased estimate.

    Args:
        model: The model. A family whose texts begin with begin-of-text gets it before each window.
        texts: Token ids, without begin-of-text; they are not changed.
        draws: Masks for each window.
        seed: Seed of the masks.
        items: A name for each text, which its masks depend on; None is its place.
        window: Tokens in a window, begin-of-text included; None is the model's maximum.
        batch_size: Rows in a batch; None is as many as fit.
        plain: Whether to take the reference path of `log_likelihood`.
        progress: Called with (windows done, windows in all), now and then.

    Raises:
        CheckpointError: If the family's texts begin with a token that the tokenizer does not name.
        InputError: If `draws` is less than 1, or a window or a token does not fit the model.
    """
    front = begin_of_text(model)
    size = (model.max_length if window is None else window) - len(front)
    if size < 1 or size + len(front) > model.max_length:
        raise InputError(
            f"window {window} must leave room for a token and fit the model's {model.max_length}"
        )
    names = [str(place) for place in range(len(texts))] if items is None else items
    cuts = [
        (number, f"{names[number]}|{start}", text[start : start + size])
        for number, text in enumerate(texts)
        for start in range(0, len(text), size)
    ]
    found = score_pairs(
        model,
        [(front, piece) for _, _, piece in cuts],
        Estimation(draws=draws, seed=seed, plain=plain),
        items=[name for _, name, _ in cuts],
        batch_size=batch_size,
        progress=progress,
    )
    parts: list[list[Scored]] = [[] for _ in texts]
    for (number, _, _), scored in zip(cuts, found, strict=True):
        parts[number].append(scored)
    return [_joined(text, part) for text, part in zip(texts, parts, strict=True)]


def _joined(text: Sequence[int], windows: Sequence[Scored]) -> Bound:
    return Bound(
        nats=-math.fsum(one.value for one in windows),
        tokens=len(text),
        rows=sum(one.rows for one in windows),
        token_forwards=sum(one.token_forwards for one in windows),
    )
