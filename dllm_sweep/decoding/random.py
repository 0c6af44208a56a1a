"""Write positions in random order (the `random` remasking of LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Random:
    """Ranks positions by random numbers."""

    def confidence(
        self, logits: Tensor, tokens: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Give each position a number from [0, 1), (B, W) float64."""
        width = tokens.shape[1]
        rows = [torch.rand(width, generator=one, dtype=torch.float64) for one in generators]
        return torch.stack(rows).to(logits.device)


PLUGIN = Random()
