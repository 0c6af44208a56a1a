"""Entries of a sweep file of which nothing can run: mistakes, told before anything is stored.

In a grid some combinations are not legal, and are skipped with their reason. A scheme, a method or
a model of which every combination is skipped was not meant so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from dllm_sweep.sweep_problems import Finding

if TYPE_CHECKING:
    from dllm_sweep.yaml_places import Place

_AXES = ("schemes", "methods", "models")
"""Axes of the grid in the order in which they are blamed."""
_REASONS_SHOWN = 3


def findings_of(
    tried: Iterable[tuple[Collection[Place], str | None]], replaced: Collection[str]
) -> list[Finding]:
    """Find the entries of which every point is skipped; of one cause, the first is blamed.

    Args:
        tried: For every point of the grid, the places of its entries, and why it is skipped; None
            if it runs.
        replaced: Keys of the file that `--set` has replaced. Entries under other keys were written
            for another grid then: of them nothing may be left.
    """
    alive: set[Place] = set()
    reasons: dict[Place, dict[str, None]] = {}
    for places, reason in tried:
        for place in places:
            if reason is None:
                alive.add(place)
            else:
                reasons.setdefault(place, {})[reason] = None
    dead = [place for place in reasons if place not in alive and _is_meant(place, replaced)]
    return list(_blamed(sorted(dead, key=lambda place: _AXES.index(str(place[0]))), reasons))


def _is_meant(place: Place, replaced: Collection[str]) -> bool:
    return place[0] in replaced or not any(axis in replaced for axis in _AXES)


def _blamed(dead: Iterable[Place], reasons: dict[Place, dict[str, None]]) -> Iterable[Finding]:
    told: set[str] = set()
    for place in dead:
        new = [reason for reason in reasons[place] if reason not in told]
        if new:
            told.update(new)
            more = f" (and {len(new) - _REASONS_SHOWN} more)" if len(new) > _REASONS_SHOWN else ""
            yield Finding(place, f"no trial of it can run: {'; '.join(new[:_REASONS_SHOWN])}{more}")
