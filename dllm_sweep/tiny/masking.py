"""Which response tokens are hidden in training, and the loss over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from dllm_sweep.tiny.corpus import NOT_RESPONSE
from dllm_sweep.tiny.tokenizer import END

#: More segments than a packed sequence can hold.
SEGMENTS = 64


def hidden(tokens: Tensor, segments: Tensor, offsets: Tensor) -> Tensor:
    """Choose the tokens to hide, (B, L) bool: half of the segments by each law.

    By LLaDA's law every response token is hidden with a chance drawn once for the segment.
    In a state of decoding a start of the response is known, perhaps some of the end-of-text
    behind it, perhaps single tokens in between.
    """
    response = offsets != NOT_RESPONSE
    law, state = _law(segments), _state(tokens, segments, offsets)
    chosen = torch.where(_by_segment(segments) < 0.5, law, state) & response
    # A segment that shows everything teaches nothing: it is hidden as a whole instead.
    return chosen | (response & (_counts(chosen, segments).gather(1, segments) == 0))


def read_earlier(logits: Tensor) -> Tensor:
    """Move (B, L, V) logits one position on: row i becomes what was read at position i - 1.

    Row 0 stays, and so predicts nothing; the first token of a segment must never be hidden.
    """
    return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)


def segment_loss(logits: Tensor, tokens: Tensor, segments: Tensor, chosen: Tensor) -> Tensor:
    """Mean over segments of the mean cross entropy of a segment's hidden tokens.

    With the chance t uniform in (0, 1) the number hidden is uniform too, and dividing by that
    number is LLaDA's weight 1 / t at a smaller variance.
    """
    loss = functional.cross_entropy(
        logits.float().flatten(0, 1), tokens.flatten(), reduction="none"
    )
    share = chosen / _counts(chosen, segments).gather(1, segments).clamp(min=1)
    return (loss.view_as(share) * share).sum() / share.sum()


def visibility(segments: Tensor) -> Tensor:
    """Which token sees which, (B, 1, L, L): all tokens of its own segment and no other."""
    return segments[:, None, :, None] == segments[:, None, None, :]


def _law(segments: Tensor) -> Tensor:
    return torch.rand(segments.shape, device=segments.device) < _by_segment(segments)


def _state(tokens: Tensor, segments: Tensor, offsets: Tensor) -> Tensor:
    counts = _counts(offsets != NOT_RESPONSE, segments).gather(1, segments)
    chosen = offsets >= (_by_segment(segments) * counts).floor()
    tail_known = offsets >= counts - (_by_segment(segments) * counts).floor()
    chosen &= ~(tail_known & (tokens == END))
    # Half of the states know single tokens ahead as well.
    ahead = (_by_segment(segments) - 0.5).clamp(min=0) * 1.2
    return chosen & (torch.rand(segments.shape, device=segments.device) >= ahead)


def _by_segment(segments: Tensor) -> Tensor:
    """A number from (0, 1) for each segment, spread over its tokens."""
    drawn = torch.rand(len(segments), SEGMENTS, device=segments.device)
    return drawn.gather(1, segments)


def _counts(chosen: Tensor, segments: Tensor) -> Tensor:
    counts = torch.zeros(len(segments), SEGMENTS, device=segments.device)
    return counts.scatter_add(1, segments, chosen.float())
