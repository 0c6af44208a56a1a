"""LLaDA's block-wise sampler (arXiv 2502.09992, section 2.4), with Fast-dLLM's options.

The window of mask tokens behind the prompt is written block by block from left to right. In each
step the model predicts the masked positions of the block from the whole sequence, and those that
the algorithm rates highest are written for good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from dllm_sweep.decoding.base import DecodingAlgorithm
from dllm_sweep.decoding.cached import CachedBlock, FinishedBlocks
from dllm_sweep.decoding.draws import Draws
from dllm_sweep.decoding.window import Windows
from dllm_sweep.spec import DecodingSpec

Predict = Callable[[Sequence[int], Tensor], Tensor]


def transfer_counts(masked: int, steps: int) -> list[int]:
    """Share `masked` positions among `steps`, the first steps taking what is left over."""
    share, rest = divmod(masked, steps)
    return [share + (step < rest) for step in range(steps)]


def schedule(decoding: DecodingSpec, *, first_alone: bool = False) -> list[int]:
    """How many positions of a block each step writes at least.

    With a threshold or a factor the steps are as many as the block may need: one position each.

    Args:
        decoding: The options.
        first_alone: The first step writes one position and the others share the rest.
    """
    length = decoding.block_length
    if decoding.threshold is not None or decoding.factor is not None:
        return [1] * length
    steps = decoding.steps * length // decoding.gen_length
    if first_alone and length > 1:
        return [1, *transfer_counts(length - 1, steps - 1)]
    return transfer_counts(length, steps)


def write(windows: Windows, rule: DecodingAlgorithm) -> None:
    """Write the windows of one batch in place."""
    length, model = windows.decoding.block_length, windows.model
    finished = None if model.block_size is None or windows.plain else FinishedBlocks(windows)
    blocks = -(-max(windows.length - start for start in windows.starts) // length)
    begin = windows.length - blocks * length
    for first in range(begin, windows.length, length):
        last = first + length
        if windows.decoding.cache != "none":
            _write_cached_block(windows, rule, first, last)
        elif finished is not None:
            predict = partial(finished.predict, first=first, last=last)
            _write_block(windows, rule, predict, first, last)
        else:
            # A mask token that the model has written is a mask still, and may be written anew;
            # not so under block-causal attention, where finished blocks are left behind.
            left = begin if model.block_size is None else first
            _write_block(windows, rule, windows.predict, left, last)


def how_many(confidence: Tensor, valid: Tensor, least: int, decoding: DecodingSpec) -> Tensor:
    """How many of its surest positions each row writes in this step, (B,) int64.

    Args:
        confidence: (B, W) float64, log-odds if there is a threshold or a factor.
        valid: (B, W) bool, whether the position is masked.
        least: What the schedule says; with a threshold or a factor the least.
        decoding: The options (Fast-dLLM, arXiv 2505.22618, section 3.3).
    """
    probability = confidence.sigmoid().masked_fill(~valid, -torch.inf)
    if decoding.threshold is not None:
        count = (probability >= decoding.threshold).sum(-1)
    elif decoding.factor is not None:
        # (n + 1)(1 - p_n) grows with n: the n that satisfy the bound are the first ones.
        number = torch.arange(1, valid.shape[1] + 1, device=valid.device)
        surest = probability.sort(dim=-1, descending=True).values
        count = ((number + 1) * (1 - surest) < decoding.factor).sum(-1).clamp(min=1)
        # The authors' code never leaves a single position for a step of its own.
        masked = valid.sum(-1)
        count = torch.where(count == masked - 1, masked, count)
    else:
        count = torch.zeros(len(valid), dtype=torch.int64, device=valid.device)
    return count.clamp(min=least)


def highest(confidence: Tensor, valid: Tensor, counts: Tensor) -> Tensor:
    """The `counts` (B,) highest of the valid positions of each row, (B, W) bool.

    Equal ones are taken from the left: a stable sort, unlike topk, keeps their order.
    """
    order = confidence.masked_fill(~valid, -torch.inf).sort(dim=-1, descending=True, stable=True)
    rank = order.indices.argsort(-1)
    return (rank < counts[:, None]) & valid


def _write_block(
    windows: Windows, rule: DecodingAlgorithm, predict: Predict, first: int, last: int
) -> None:
    for least in schedule(windows.decoding):
        rows = windows.open(first, last)
        if not rows:
            return
        _write_step(windows, rule, predict, rows, windows.columns(rows, first, last), least)


def _write_cached_block(windows: Windows, rule: DecodingAlgorithm, first: int, last: int) -> None:
    block = CachedBlock(windows, first, last)
    # With shifted logits the block's first position is read one column before the block, which
    # only the block's first model call computes: that call writes this position alone.
    shifted = windows.model.family.logit_shift == 1
    for step, least in enumerate(schedule(windows.decoding, first_alone=shifted)):
        alone, rest = (first, first + 1), (first + shifted, last)
        span = alone if shifted and step == 0 else rest
        rows = windows.open(*span)
        if not rows:
            return
        places = windows.columns(rows, *span)
        _write_step(windows, rule, block.predict, rows, places, least)


def _write_step(
    windows: Windows,
    rule: DecodingAlgorithm,
    predict: Predict,
    rows: Sequence[int],
    places: tuple[Tensor, Tensor],
    least: int,
) -> None:
    """Predict the columns of rows and write the surest."""
    columns, valid = places
    decoding = windows.decoding
    special = windows.model.special
    ends = [*special.end_ids, *([] if special.turn_end_id is None else [special.turn_end_id])]

    def choose(logits: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        greedy = decoding.temperature == 0
        tokens = logits.argmax(-1) if greedy else draws.gumbel_tokens(logits, decoding.temperature)
        if decoding.defer_end:
            # The other tokens' probabilities are those of a model without ends, as the authors'.
            logits[..., ends] = -torch.inf
        return tokens, rule.confidence(logits, tokens, draws)

    tokens, confidence = windows.choose(rows, columns, valid, predict(rows, columns), choose)
    if decoding.defer_end:
        confidence = confidence.masked_fill(torch.isin(tokens, torch.tensor(ends)), -torch.inf)
    counts = how_many(confidence, valid, least, decoding)
    windows.write(rows, columns, tokens, highest(confidence, valid, counts))
