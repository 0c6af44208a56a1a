"""Exact sums of item scores: shards of a task merge to the very bits of the uncut task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Number, sum and sum of squares of scores, without rounding.

    Rounding happens once, in `mean` and `stderr`; so neither the order of the items nor how they
    are cut into shards changes a bit of either.
    """

    n: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, scores: Iterable[float]) -> Tally:
        """Tally finite scores.

        Raises:
            ValueError: If a score is NaN or infinite.
        """
        try:
            exact = [Fraction(score) for score in scores]
        except OverflowError as error:
            raise ValueError(f"a score is not finite: {error}") from error
        return cls(
            n=len(exact),
            total=sum(exact, Fraction(0)),
            squares=sum((score * score for score in exact), Fraction(0)),
        )

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            n=self.n + other.n,
            total=self.total + other.total,
            squares=self.squares + other.squares,
        )

    @property
    def mean(self) -> float:
        """The mean, rounded once.

        Raises:
            ZeroDivisionError: If nothing was tallied.
        """
        return float(self.total / self.n)

    @property
    def stderr(self) -> float | None:
        """Standard error of the mean, from the unbiased variance; None for fewer than two items."""
        if self.n < 2:
            return None
        variance = (self.squares - self.total * self.total / self.n) / (self.n - 1)
        return math.sqrt(variance / self.n)
