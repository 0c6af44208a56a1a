"""Write where the likeliest token leads by most (Dream's `topk_margin`, arXiv 2508.15487)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws


class TopkMargin:
    """Ranks positions by the lead of their likeliest token over the second."""

    sampler = "timeline"

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Give the difference of the two highest probabilities, (B, W) float64."""
        first, second = logits.topk(2, dim=-1).values.unbind(-1)
        whole = logits.logsumexp(-1)
        return (first - whole).exp() - (second - whole).exp()


PLUGIN = TopkMargin()
