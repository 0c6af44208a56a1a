"""Random numbers of a step: each row's own, on the CPU, in the order of the authors' samplers.

Numbers are drawn for the whole sequence of a row, prompt included, and those of the masked
positions are used. So a row's numbers depend on its seed and its length alone, and the tokens of a
single prompt are those that the authors' code writes on a CPU with the same seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_NOISE = 2**24
"""Gumbel noise that is drawn for one row in one step. The authors draw length x vocabulary numbers;
at the size of LLaDA-8B that takes twenty times as long as the model itself."""


class Draws:
    """Random numbers of some positions of some rows.

    Args:
        generators: One for each row, on the CPU.
        lengths: Tokens of each row, padding not counted.
        places: (B, W) int64 on the CPU, positions within the row's own sequence.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], lengths: Sequence[int], places: Tensor
    ) -> None:
        self.generators, self.lengths, self.places = generators, lengths, places

    def uniform(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Numbers from [0, 1), (B, W) of type `dtype`."""
        return self._picked(lambda size, one: torch.rand(size, generator=one, dtype=dtype))

    def exponential(self) -> Tensor:
        """Exponential numbers of mean 1, (B, W) float32."""
        return self._picked(lambda size, one: torch.empty(size).exponential_(generator=one))

    def tokens(self, logits: Tensor, temperature: float) -> Tensor:
        """Draw tokens from softmax(logits / temperature), (B, W) int64 from (B, W, V) float64.

        As LLaDA does, by the highest of logits with Gumbel noise, where that takes no more than
        `MOST_NOISE` numbers; else from the same distribution with one number a position.
        """
        rows = [
            self._with_noise(row, logits[row], temperature)
            if length * logits.shape[-1] <= MOST_NOISE
            else self._by_cumulation(row, logits[row] / temperature)
            for row, length in enumerate(self.lengths)
        ]
        return torch.stack(rows)

    def tokens_by_cumulation(self, logits: Tensor) -> Tensor:
        """Draw tokens from softmax(logits), (B, W) int64, with one number a position."""
        return torch.stack([self._by_cumulation(row, one) for row, one in enumerate(logits)])

    def _with_noise(self, row: int, logits: Tensor, temperature: float) -> Tensor:
        # Gumbel-max needs float64: the tails of float32 noise change what is sampled.
        shape = (self.lengths[row], logits.shape[-1])
        uniform = torch.rand(shape, generator=self.generators[row], dtype=torch.float64)
        noise = -torch.log(-torch.log(uniform[self.places[row]].to(logits.device)))
        return (logits + temperature * noise).argmax(-1)

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
