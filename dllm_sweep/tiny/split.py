"""Which items are for testing: decided by a hash of what an item says, never by its place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Protocol, TypeVar

#: One item in this many is a test item.
TEST_EVERY = 8


class HasContent(Protocol):
    """Anything with a canonical content, the same for every wording of one item."""

    @property
    def content(self) -> str:
        """What the item says, without names, stories or spelling."""
        ...


Item = TypeVar("Item", bound=HasContent)


def is_test(content: str) -> bool:
    """Whether an item of this canonical content belongs to the test split."""
    digest = hashlib.sha256(content.encode()).digest()
    return int.from_bytes(digest[:8], "big") % TEST_EVERY == 0


def draw(make: Callable[[Random], Item], rng: Random, *, test: bool) -> Item:
    """Call `make` until it gives an item of the wanted split."""
    while True:
        item = make(rng)
        if is_test(item.content) == test:
            return item


def draw_distinct(
    make: Callable[[Random], Item], rng: Random, count: int, *, test: bool
) -> list[Item]:
    """Draw `count` items of one split, all of different content."""
    found: dict[str, Item] = {}
    while len(found) < count:
        item = draw(make, rng, test=test)
        found.setdefault(item.content, item)
    return list(found.values())
