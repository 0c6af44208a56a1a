"""How much the model computed for one item; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one item took, over all of its requests.

    Attributes:
        steps: Denoising steps; 0 for scored answers.
        forwards: Rows that went through the model; one that several choices share counts once.
        token_forwards: Positions that went through the model's blocks, padding left out.
        truncated: Tokens of the context that did not fit and were cut off on the left.
    """

    steps: int = 0
    forwards: int = 0
    token_forwards: int = 0
    truncated: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            steps=self.steps + other.steps,
            forwards=self.forwards + other.forwards,
            token_forwards=self.token_forwards + other.token_forwards,
            truncated=self.truncated + other.truncated,
        )
