"""Entries of a sweep file of which nothing can run: mistakes, told before anything is stored.

In a grid some combinations are not legal, and are skipped with their reason. A scheme, a method, a
text or a model of which every combination is skipped was not meant so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep.sweep_problems import Finding

if TYPE_CHECKING:
    from dllm_sweep.yaml_places import Place

_AXES = ("schemes", "methods", "calibration", "models")
_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Skip:
    """Why a point of the grid cannot run.

    Attributes:
        reason: For people.
        key: The file's key whose entry is the first to blame for it.
    """

    reason: str
    key: str


def findings_of(
    tried: Sequence[tuple[Collection[Place], Skip | None]], replaced: Collection[str]
) -> list[Finding]:
    """Find the entries of which every point is skipped; of one cause, one entry is blamed.

    Args:
        tried: For every point of the grid, the places of its entries, and why it is skipped; None
            if it runs.
        replaced: Keys of the file that `--set` has replaced. Entries under other keys were written
            for another grid then: of them nothing may be left.
    """
    alive = {place for places, skip in tried if skip is None for place in places}
    meant = [axis for axis in _AXES if axis in replaced] or _AXES
    blamed: dict[Place, dict[str, None]] = {}
    for places, skip in tried:
        dead = [place for place in places if place not in alive and place[0] in meant]
        if skip is not None and dead:
            blamed.setdefault(_to_blame(dead, skip), {})[skip.reason] = None
    return [Finding(place, _told(list(reasons))) for place, reasons in blamed.items()]


def _to_blame(dead: Iterable[Place], skip: Skip) -> Place:
    return min(dead, key=lambda place: (place[0] != skip.key, _AXES.index(str(place[0]))))


def _told(reasons: Sequence[str]) -> str:
    left = len(reasons) - _REASONS_SHOWN
    more = f" (and {left} more)" if left > 0 else ""
    return f"no trial of it can run: {'; '.join(reasons[:_REASONS_SHOWN])}{more}"
