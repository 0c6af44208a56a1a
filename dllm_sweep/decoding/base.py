"""What a decoding algorithm is, and what a sampler gives. One algorithm is one file beside this.

Nothing here needs torch, nor do the algorithms' files until they are used: planning reads which
sampler an algorithm belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dllm_sweep.decoding.draws import Draws

ItemsCallback = Callable[[int, int], None]
"""Called with (items done, items in all)."""

StopRule = Callable[[Sequence[int]], bool]
"""Told the finished front of a window, says whether nothing behind it can count any more."""

StepCallback = Callable[[int, int, Sequence[int]], None]
"""Called with (number of a prompt, step of its row, the ids that the model is shown of it)."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What was written behind one prompt, and what it took.

    Attributes:
        tokens: The window's tokens, end-of-text included; of an answer that was complete early,
            only those up to the first position that was still masked.
        steps: Denoising steps that this row took part in.
        forwards: Model calls that this row took part in; more than steps with guidance.
        token_forwards: Tokens of this row that went through the model, padding not counted.
    """

    tokens: tuple[int, ...]
    steps: int
    forwards: int
    token_forwards: int


class DecodingAlgorithm(Protocol):
    """Chooses which of the masked positions are written first; the module's `PLUGIN`.

    Attributes:
        sampler: Whose algorithm it is, `blockwise` or `timeline`.
    """

    sampler: str

    def confidence(self, logits: Tensor, tokens: Tensor, draws: Draws) -> Tensor:
        """Rate each masked position; the highest are written, ties from the left.

        Args:
            logits: (B, W, V) float64, at the masked positions only.
            tokens: (B, W) int64, the token that would be written.
            draws: Random numbers of these positions, each row's from its own generator, so that
                they depend neither on the device nor on the other rows.

        Returns:
            (B, W) float64.
        """


@runtime_checkable
class BlindAlgorithm(Protocol):
    """Chooses positions whatever the model predicts there; of the timeline sampler only.

    Attributes:
        sampler: `timeline`.
    """

    sampler: str

    def picks(self, masked: int, share: Tensor, generator: torch.Generator) -> Tensor:
        """Choose among the masked positions of one row.

        Args:
            masked: How many there are.
            share: Part of them that the time grid wants written, a float32 scalar.
            generator: The row's random numbers.

        Returns:
            (masked,) bool.
        """
