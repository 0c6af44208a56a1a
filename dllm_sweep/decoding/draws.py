"""Random numbers of a step: each row's own, on the CPU, in the order of the authors' samplers.

What is drawn depends on the row's seed, its length and its masks alone, never on the other rows of
a batch, and the tokens of a small model behind a single prompt are those that the authors' code
writes on a CPU with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_NOISE = 2**22
"""Length x vocabulary of the rows whose tokens are drawn with a random number for each token of the
vocabulary, as the authors do. At the size of LLaDA-8B that would take twenty times as long as the
model itself; there, tokens are drawn from the same distribution with one number a position."""


class Draws:
    """Random numbers of some positions of some rows.

    Args:
        generators: One for each row, on the CPU.
        lengths: Tokens of each row, padding not counted.
        places: (B, W) int64 on the CPU, positions within the row's own sequence.
        counts: How many of its places each row really has; those behind them are fillers.
    """

    def __init__(
        self,
        generators: Sequence[torch.Generator],
        lengths: Sequence[int],
        places: Tensor,
        counts: Sequence[int],
    ) -> None:
        self.generators, self.lengths = generators, lengths
        self.places, self.counts = places, counts

    def uniform(self) -> Tensor:
        """Numbers from [0, 1), (B, W) float32."""
        return self._picked(lambda size, one: torch.rand(size, generator=one))

    def exponential(self) -> Tensor:
        """Exponential numbers of mean 1, (B, W) float32."""
        return self._picked(lambda size, one: torch.empty(size).exponential_(generator=one))

    def gumbel_tokens(self, logits: Tensor, temperature: float) -> Tensor:
        """Draw tokens from softmax(logits / temperature) as LLaDA does.

        Its way is the highest of logits with Gumbel noise in float64 over the whole sequence: the
        tails of float32 noise would change what is sampled.

        Args:
            logits: (B, W, V) float64.
            temperature: Above 0.

        Returns:
            (B, W) int64.
        """

        def highest(row: int, one: Tensor) -> Tensor:
            shape, generator = (self.lengths[row], one.shape[-1]), self.generators[row]
            uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
            noise = -torch.log(-torch.log(uniform[self.places[row]].to(one.device)))
            return (one + temperature * noise).argmax(-1)

        return self._tokens(logits, temperature, highest)

    def categorical_tokens(self, logits: Tensor) -> Tensor:
        """Draw tokens from softmax(logits) as Dream does, (B, W) int64 from (B, W, V) float64.

        Its way is torch.multinomial over the masked positions: the highest of probabilities
        divided by exponential noise in float32.
        """

        def highest(row: int, one: Tensor) -> Tensor:
            noise = torch.ones(one.shape)
            noise[: self.counts[row]] = self._exponential_noise(row, one.shape[-1])
            return (one.softmax(-1) / noise.to(one.device)).argmax(-1)

        return self._tokens(logits, 1.0, highest)

    def pass_over(self, vocabulary: int) -> None:
        """Use up what `categorical_tokens` would: Dream draws in steps that write nothing, too."""
        for row, length in enumerate(self.lengths):
            if length * vocabulary <= MOST_NOISE:
                self._exponential_noise(row, vocabulary)

    def _exponential_noise(self, row: int, vocabulary: int) -> Tensor:
        noise = torch.empty(self.counts[row], vocabulary)
        return noise.exponential_(generator=self.generators[row])

    def _tokens(
        self, logits: Tensor, temperature: float, highest: Callable[[int, Tensor], Tensor]
    ) -> Tensor:
        rows = [
            highest(row, logits[row])
            if length * logits.shape[-1] <= MOST_NOISE
            else self._by_cumulation(row, logits[row] / temperature)
            for row, length in enumerate(self.lengths)
        ]
        return torch.stack(rows)

    def _by_cumulation(self, row: int, logits: Tensor) -> Tensor:
        size, generator = self.lengths[row], self.generators[row]
        uniform = torch.rand(size, generator=generator, dtype=torch.float64)[self.places[row]]
        sums = logits.softmax(-1).cumsum(-1)
        aim = uniform.to(logits.device)[:, None] * sums[:, -1:]
        return torch.searchsorted(sums, aim, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)

    def _picked(self, draw: Callable[[int, torch.Generator], Tensor]) -> Tensor:
        rows = [draw(*row) for row in zip(self.lengths, self.generators, strict=True)]
        picked = [row[places] for row, places in zip(rows, self.places, strict=True)]
        return torch.stack(picked)
