"""Dream's sampler (`diffusion_generate`, arXiv 2508.15487): the whole window along a time grid.

Time runs from 1 down to `EPSILON` in equal steps. From t to s each masked position is due with
probability 1 - s / t; the algorithm chooses which, and the last step writes what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_sweep.decoding.base import BlindAlgorithm, DecodingAlgorithm
from dllm_sweep.decoding.blockwise import highest
from dllm_sweep.decoding.draws import Draws
from dllm_sweep.decoding.window import Windows, compact
from dllm_sweep.spec import DecodingSpec

EPSILON = 1e-3
"""Where the time grid ends."""


def shares(steps: int) -> Tensor:
    """The part of the masked positions that each step writes, (steps,) float32; the last is 1.

    In float32, as the authors compute it: whether 0.99999 or 1 position is due decides whether it
    is written.
    """
    grid = torch.linspace(1, EPSILON, steps + 1)
    part = 1 - grid[1:] / grid[:-1]
    part[-1] = 1
    return part


def transfer_count(masked: int, share: Tensor) -> int:
    """How many of `masked` positions a step with this share writes.

    The authors round down the mean over a batch, so that a row's answer depends on the others
    beside it; here each row has its own count, which is theirs for a batch of one.
    """
    return int(torch.tensor(masked, dtype=torch.float32) * share)


def filtered(logits: Tensor, decoding: DecodingSpec) -> Tensor:
    """Scale logits (..., V) by the temperature and drop tokens outside top-p, then top-k."""
    if decoding.temperature > 0:
        logits = logits / decoding.temperature
    if decoding.top_p is not None and decoding.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        probability = ordered.softmax(-1)
        # A token stays if those before it have not reached the sum: the one that does stays, too.
        reached = probability.cumsum(-1) - probability > decoding.top_p
        logits = logits.masked_fill(reached.scatter(-1, order, reached), -torch.inf)
    if decoding.top_k is not None and decoding.top_k < logits.shape[-1]:
        least = logits.topk(decoding.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def surest(
    windows: Windows,
    rows: Sequence[int],
    places: tuple[Tensor, Tensor],
    confidence: Tensor,
    counts: Tensor,
) -> Tensor:
    """The `counts` (B,) most confident places of each row, (B, W) bool.

    Where top-p leaves a position one token, its probability is 1, and such positions tie. The
    authors leave ties to torch.topk over the whole sequence in float32, whose choice depends on
    where the others stand. So do we, for each row without its padding, whatever else is in the
    batch.

    Args:
        windows: The batch.
        rows: Its rows.
        places: Columns (B, W) and whether they are masked (B, W), as `Windows.columns` gives them.
        confidence: (B, W).
        counts: How many of each row are due.
    """
    columns, valid = places
    chosen = torch.zeros_like(valid)
    for number, row in enumerate(rows):
        own = valid[number]
        where = columns[number] - (windows.length - windows.lengths[row])
        whole = torch.full((windows.lengths[row],), -torch.inf)
        whole[where[own]] = confidence[number, own].float()
        best = whole.topk(int(counts[number])).indices
        chosen[number] = own & torch.isin(where, best)
    return chosen


def write(windows: Windows, rule: DecodingAlgorithm | BlindAlgorithm) -> None:
    """Write the windows of one batch in place."""
    if isinstance(rule, BlindAlgorithm):
        for share in shares(windows.decoding.steps):
            _write_blind_step(windows, rule, share)
    elif windows.decoding.threshold is not None:
        _write_above_threshold(windows, rule, windows.decoding.threshold)
    else:
        for share in shares(windows.decoding.steps):
            _write_ranked_step(windows, rule, share)


def _write_blind_step(windows: Windows, rule: BlindAlgorithm, share: Tensor) -> None:
    rows = windows.open(0, windows.length)
    if not rows:
        return
    columns, valid = windows.columns(rows, 0, windows.length)
    chosen = torch.zeros_like(valid)
    for number, (row, masked) in enumerate(zip(rows, valid.sum(1).tolist(), strict=True)):
        chosen[number, :masked] = rule.picks(masked, share, windows.generators[row])
    rows, (columns, chosen) = _moving(windows, rows, chosen.any(1), columns, chosen)
    if rows:
        order, valid = compact(chosen, multiple=windows.multiple)
        columns = columns.gather(1, order).masked_fill(~valid, windows.length - 1)
        (tokens,) = _choose(windows, rows, columns, valid, None)
        windows.write(rows, columns, tokens, valid)


def _write_ranked_step(windows: Windows, rule: DecodingAlgorithm, share: Tensor) -> None:
    rows = windows.open(0, windows.length)
    if not rows:
        return
    columns, valid = windows.columns(rows, 0, windows.length)
    counts = torch.tensor([transfer_count(masked, share) for masked in valid.sum(1).tolist()])
    if windows.decoding.temperature > 0:
        idle = [row for row, count in zip(rows, counts.tolist(), strict=True) if count == 0]
        draws = windows.draws(idle, columns[counts == 0], valid[counts == 0])
        draws.pass_over(windows.model.host.config.vocab_size)
    rows, (columns, valid, counts) = _moving(windows, rows, counts > 0, columns, valid, counts)
    if not rows:
        return
    tokens, confidence = _choose(windows, rows, columns, valid, rule)
    temperature = windows.decoding.algorithm_temperature
    if temperature > 0:
        # Drawing n without replacement from softmax(c / temperature), as torch.multinomial does:
        # the n highest of probability / exponential noise, here in logarithms.
        noise = windows.draws(rows, columns, valid).exponential().double()
        chosen = highest(confidence / temperature - noise.log(), valid, counts)
    else:
        chosen = surest(windows, rows, (columns, valid), confidence, counts)
    windows.write(rows, columns, tokens, chosen)


def _write_above_threshold(windows: Windows, rule: DecodingAlgorithm, threshold: float) -> None:
    """Fast-dLLM's variant without blocks (arXiv 2505.22618).

    Each step may write its equal share of the window and what earlier steps left of theirs: the
    surest position, and of the others those whose token is probable enough. When the steps are
    used up, there are more of them for what is left.
    """
    size, steps = windows.decoding.gen_length, windows.decoding.steps
    for step in range(steps + size):
        rows = windows.open(0, windows.length)
        if not rows:
            return
        columns, valid = windows.columns(rows, 0, windows.length)
        due = size // steps * min(step + 1, steps) - (size - valid.sum(1))
        tokens, confidence = _choose(windows, rows, columns, valid, rule)
        sure = (confidence >= threshold) & valid
        counts = torch.minimum(due, sure.sum(1)).clamp(min=1)
        chosen = surest(windows, rows, (columns, valid), confidence, counts)
        windows.write(rows, columns, tokens, chosen)


def _choose(
    windows: Windows,
    rows: Sequence[int],
    columns: Tensor,
    valid: Tensor,
    rule: DecodingAlgorithm | None,
) -> tuple[Tensor, ...]:
    """Choose tokens for columns (B, W) of rows; with a rule, give their confidences, too."""

    def choose(logits: Tensor, draws: Draws) -> tuple[Tensor, ...]:
        logits = filtered(logits, windows.decoding)
        greedy = windows.decoding.temperature == 0
        tokens = logits.argmax(-1) if greedy else draws.categorical_tokens(logits)
        return (tokens,) if rule is None else (tokens, rule.confidence(logits, tokens, draws))

    return windows.choose(rows, columns, valid, windows.predict(rows, columns), choose)


def _moving(
    windows: Windows, rows: Sequence[int], moves: Tensor, columns: Tensor, *others: Tensor
) -> tuple[list[int], tuple[Tensor, ...]]:
    """Keep the rows for which this step writes anything; the others need no model call."""
    idle = [row for row, one in zip(rows, moves.tolist(), strict=True) if not one]
    if windows.plain and idle:
        windows.predict(idle, columns[~moves])
    kept = [row for row, one in zip(rows, moves.tolist(), strict=True) if one]
    return kept, tuple(one[moves] for one in (columns, *others))
