"""Write positions in random order (the `random` remasking of LLaDA, arXiv 2502.09992)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws


class Random:
    """Ranks positions by random numbers."""

    sampler = "blockwise"

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Give each position a number from [0, 1), (B, W) float64."""
        return draws.uniform().to(logits)


PLUGIN = Random()
