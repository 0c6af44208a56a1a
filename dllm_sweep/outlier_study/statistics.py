"""Statistics of activations in one pass, in memory that does not grow with their number of values.

Only the greatest value of every token is kept; everything else is a running sum, maximum or count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

MANTISSA_BITS = 9
"""Bins of the histogram for each power of two: 2^9, so that the median is exact to 0.1%."""
TOKEN_THRESHOLDS = (100, 1000)
"""A token counts as massive if its greatest value is this many times the median."""

_DROPPED = 23 - MANTISSA_BITS
_BINS = 1 << (8 + MANTISSA_BITS)


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One number of a layer's input; fields as in `OutlierRow`."""

    statistic: str
    value: float
    rank: int = 0
    index: int | None = None


@dataclass(kw_only=True)
class ActivationStatistics:
    """What is known so far of the activations (tokens, n) of one linear's input.

    Attributes:
        channel_max: (n,) float32, greatest absolute value of each channel.
        histogram: Counts of absolute values by their leading float32 bits.
        moments: (4,) float64, sums of the first to fourth powers.
        values: Number of values.
        token_max: Greatest absolute value of each token.
        token_index: Where each of these tokens stands, counted through all sequences.
    """

    channel_max: Tensor
    histogram: Tensor
    moments: Tensor
    values: int = 0
    token_max: list[Tensor] = field(default_factory=list)
    token_index: list[Tensor] = field(default_factory=list)

    @classmethod
    def empty(cls, channels: int, device: torch.device) -> ActivationStatistics:
        """Start with no activations."""
        return cls(
            channel_max=torch.zeros(channels, device=device),
            histogram=torch.zeros(_BINS, dtype=torch.int64, device=device),
            moments=torch.zeros(4, dtype=torch.float64),
        )

    def add(self, activations: Tensor, index: Tensor) -> None:
        """Add tokens.

        Args:
            activations: (t, n) floating point.
            index: (t,) int64, where the tokens stand.
        """
        if not len(activations):
            return
        magnitude = activations.float().abs()
        self.channel_max = torch.maximum(self.channel_max, magnitude.amax(0))
        bins = magnitude.contiguous().view(torch.int32) >> _DROPPED
        self.histogram += torch.bincount(bins.flatten(), minlength=_BINS)
        x = activations.double()
        self.moments += torch.stack([x.pow(power).sum() for power in (1, 2, 3, 4)]).cpu()
        self.values += activations.numel()
        self.token_max.append(magnitude.amax(1).cpu())
        self.token_index.append(index.cpu())

    def summary(self, top: int) -> tuple[Statistic, ...]:
        """Give all statistics, the `top` greatest channels and tokens among them."""
        if not self.values:
            return ()
        tokens, places = torch.cat(self.token_max), torch.cat(self.token_index)
        median = self._median()
        share = {
            f"tokens_above_{factor}x_median": (tokens > factor * median).double().mean().item()
            for factor in TOKEN_THRESHOLDS
        }
        singles = {
            "median": median,
            "max_to_median": _ratio(tokens.max().item(), median),
            "kurtosis": self._kurtosis(),
            **share,
        }
        channels = torch.arange(len(self.channel_max))
        return (
            *_greatest("channel_max", self.channel_max.cpu(), channels, top),
            *_greatest("token_max", tokens, places, top),
            *(Statistic(statistic=name, value=value) for name, value in singles.items()),
        )

    def _median(self) -> float:
        # The lower median; the middle of its bin stands for it.
        reached = self.histogram.cumsum(0) >= (self.values + 1) // 2
        chosen = int(reached.int().argmax())
        if chosen == 0:
            return 0.0
        middle = (chosen << _DROPPED) + (1 << (_DROPPED - 1))
        return float(torch.tensor(middle, dtype=torch.int32).view(torch.float32))

    def _kurtosis(self) -> float:
        mean, second, third, fourth = (self.moments / self.values).tolist()
        variance = second - mean**2
        if variance <= 0:
            return float("nan")
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        return float(central / variance**2)


def _ratio(greatest: float, median: float) -> float:
    return greatest / median if median > 0 else float("nan")


def _greatest(name: str, values: Tensor, places: Tensor, top: int) -> list[Statistic]:
    # Stable: among equals the first comes first, whatever the size of the batches.
    order = torch.argsort(values, descending=True, stable=True)[:top]
    return [
        Statistic(statistic=name, rank=rank, index=int(places[i]), value=values[i].item())
        for rank, i in enumerate(order.tolist())
    ]
