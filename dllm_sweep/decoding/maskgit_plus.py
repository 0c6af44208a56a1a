"""Write the tokens that are likeliest (Dream's `maskgit_plus`, arXiv 2508.15487)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws


class MaskgitPlus:
    """Ranks positions by the probability of their token."""

    sampler = "timeline"

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Give the probability of each token, (B, W) float64 from (B, W, V) and (B, W)."""
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0].exp()


PLUGIN = MaskgitPlus()
