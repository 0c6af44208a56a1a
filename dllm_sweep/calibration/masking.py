"""Which tokens of a calibration sequence are hidden behind mask tokens.

Planning lists the modes, so torch is imported only where tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Generator, Tensor

LEAST_RATE = 1e-3

Masking: TypeAlias = "Callable[[int, int, Generator], Tensor]"
"""Called with (sequences N, length L, generator); gives (N, L) bool, True where a mask stands."""


def none(sequences: int, length: int, generator: Generator) -> Tensor:
    """Hide nothing: clean text, as the methods' authors calibrate on."""
    import torch

    return torch.zeros(sequences, length, dtype=torch.bool)


def uniform(sequences: int, length: int, generator: Generator) -> Tensor:
    """Hide each token with probability t, where t is uniform in (0, 1] for each sequence.

    This is the law that LLaDA is trained with (arXiv 2502.09992, section 2); a rate is at least
    0.001.
    """
    import torch

    rates = LEAST_RATE + (1 - LEAST_RATE) * torch.rand(sequences, 1, generator=generator)
    return torch.rand(sequences, length, generator=generator) < rates


MODES: dict[str, Masking] = {"none": none, "uniform": uniform}
"""Name in a sweep file -> mode; a new one needs its function and its line here."""
