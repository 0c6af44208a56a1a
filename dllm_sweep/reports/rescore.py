"""Stored and recomputed scores as a listing."""

from __future__ import annotations

from collections.abc import Sequence

from dllm_sweep.reports.listing import Listing
from dllm_sweep.rescoring import Rescored

_KEY_DIGITS = 12
_FULL = (
    *("sweep", "trial_key", "trial", "task", "metric", "stored", "rescored", "difference"),
    *("stored_n", "n", "items_changed", "differs", "note"),
)


def rescored_listing(rows: Sequence[Rescored], *, full: bool) -> Listing:
    """One row a metric.

    Args:
        rows: The metrics.
        full: Whether for programs: whole keys and all columns.
    """
    if full:
        return Listing(_FULL, tuple(tuple(getattr(row, name) for name in _FULL) for row in rows))
    columns = ("trial", "key", "task", "metric", "stored", "now", "difference", "items", "note")
    return Listing(columns, tuple(_short(row) for row in rows))


def rescored_note(rows: Sequence[Rescored]) -> str:
    """Say in a sentence how many scores are what they were."""
    differing = sum(row.differs for row in rows)
    if not differing:
        return f"{len(rows)} scores, all as stored"
    return f"{differing} of {len(rows)} scores are not as stored; the store is left as it is"


def _short(row: Rescored) -> tuple[object, ...]:
    scores = (row.stored, row.rescored, row.difference)
    names = (row.trial, row.trial_key[:_KEY_DIGITS], row.task, row.metric)
    return (*names, *scores, row.items_changed, row.note)
