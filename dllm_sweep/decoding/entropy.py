"""Write where the model's distribution is narrowest (Dream's `entropy`, arXiv 2508.15487)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws


class Entropy:
    """Ranks positions by the negative entropy of their distribution."""

    sampler = "timeline"

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Give the sum of p ln p, (B, W) float64 from (B, W, V)."""
        log_p = logits.log_softmax(-1)
        # Tokens that top-p or top-k has ruled out add 0, not 0 times minus infinity.
        return (log_p.exp() * log_p.masked_fill(log_p == -math.inf, 0.0)).sum(-1)


PLUGIN = Entropy()
