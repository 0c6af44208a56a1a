"""Which tokens of a calibration sequence are hidden behind mask tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LEAST_RATE = 1e-3

Masking = Callable[[int, int, torch.Generator], Tensor]
"""Called with (sequences N, length L, generator); gives (N, L) bool, True where a mask stands."""


def none(sequences: int, length: int, generator: torch.Generator) -> Tensor:
    """Hide nothing: clean text, as the methods' authors calibrate on."""
    return torch.zeros(sequences, length, dtype=torch.bool)


def uniform(sequences: int, length: int, generator: torch.Generator) -> Tensor:
    """Hide each token with probability t, where t is uniform in (0, 1] for each sequence.

    This is the law that LLaDA is trained with (arXiv 2502.09992, section 2); a rate is at least
    0.001.
    """
    rates = LEAST_RATE + (1 - LEAST_RATE) * torch.rand(sequences, 1, generator=generator)
    return torch.rand(sequences, length, generator=generator) < rates


MODES: dict[str, Masking] = {"none": none, "uniform": uniform}
