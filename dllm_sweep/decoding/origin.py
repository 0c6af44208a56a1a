"""Write each position with the same probability (Dream's `origin`, arXiv 2508.15487)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Origin:
    """Leaves the choice of positions to chance: the reverse process of masked diffusion."""

    sampler = "timeline"

    def picks(self, masked: int, share: Tensor, generator: torch.Generator) -> Tensor:
        """Choose each of the masked positions with probability `share`, (masked,) bool."""
        return share.new_empty(masked).uniform_(generator=generator) < share


PLUGIN = Origin()
