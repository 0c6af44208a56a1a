"""Write the tokens that the model is surest of (LLaDA, arXiv 2502.09992, algorithm 5)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws


class LowConfidence:
    """Ranks positions by the probability of their token."""

    sampler = "blockwise"

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Give the log-odds of each token, (B, W) float64 from (B, W, V) and (B, W).

        They order positions as the probabilities do, but do not tie at 1.0 when the model is
        nearly certain of many positions at once.
        """
        chosen = tokens[..., None]
        others = logits.scatter(-1, chosen, -math.inf)
        return logits.gather(-1, chosen)[..., 0] - others.logsumexp(-1)


PLUGIN = LowConfidence()
