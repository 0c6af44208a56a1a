"""What a decoding algorithm is. One algorithm is one file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

ItemsCallback = Callable[[int, int], None]
"""Called with (items done, items in all)."""


class DecodingAlgorithm(Protocol):
    """Chooses which of the masked positions are written first; the module's `PLUGIN`."""

    def confidence(
        self, logits: Tensor, tokens: Tensor, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """Rate each position of the current block; the highest are written, ties from the left.

        Args:
            logits: (B, W, V) float64, over the block only.
            tokens: (B, W) int64, the token that would be written.
            generators: One random generator for each row, on the CPU, so that a row's random
                numbers depend neither on the device nor on the other rows.

        Returns:
            (B, W) float64.
        """
