"""How much a model has computed, counted where it computes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """Forward passes of a model; the difference of two is the work between them.

    Attributes:
        calls: Forward passes.
        rows: Sequences in them.
        tokens: Positions that went through the blocks, padding included; of a pass with a cache
            only those forwarded.
        head_tokens: Positions whose logits were computed. Where only some are asked for, these
            are also the only ones whose queries and feed-forward the last block computes.
    """

    calls: int = 0
    rows: int = 0
    tokens: int = 0
    head_tokens: int = 0

    def __add__(self, other: Work) -> Work:
        """Sum, number by number."""
        return Work(
            calls=self.calls + other.calls,
            rows=self.rows + other.rows,
            tokens=self.tokens + other.tokens,
            head_tokens=self.head_tokens + other.head_tokens,
        )

    def __sub__(self, other: Work) -> Work:
        """Difference, number by number."""
        return Work(
            calls=self.calls - other.calls,
            rows=self.rows - other.rows,
            tokens=self.tokens - other.tokens,
            head_tokens=self.head_tokens - other.head_tokens,
        )
