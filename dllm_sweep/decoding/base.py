"""What a decoding algorithm is. One algorithm is one file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ItemsCallback = Callable[[int, int], None]
"""Called with (items done, items in all)."""


StopRule = Callable[[Sequence[int]], bool]
"""Told the finished front of a window, says whether nothing behind it can count any more."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was written behind one prompt, and what it took.

    Attributes:
        tokens: The window's tokens, end-of-text included; those of blocks that were not written
            because the answer was complete are missing at the end.
        steps: Denoising steps that this row took part in.
        forwards: Model calls that this row took part in; more than steps with guidance.
        token_forwards: Tokens of this row that went through the model, padding not counted.
    """

    tokens: tuple[int, ...]
    steps: int
    forwards: int
    token_forwards: int


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
