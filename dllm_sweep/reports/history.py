"""The history of one trial: every change of its state, its attempts and its units."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dllm_sweep.reports.listing import Listing, as_csv, plain

if TYPE_CHECKING:
    from dllm_sweep.db.reads import Table
    from dllm_sweep.db.trial_history import TrialHistory

_SECTIONS = ("events", "attempts", "units", "failures")
_TIMES = {
    "at_s": "at",
    "started_s": "started",
    "ended_s": "ended",
    "done_s": "done",
    "failed_s": "failed",
}


def render_history(label: str, history: TrialHistory, form: str) -> str:
    """All sections as tables or one JSON object; as CSV the events alone."""
    if form == "json":
        sections = {name: getattr(history, name).dicts() for name in _SECTIONS}
        return json.dumps({"trial": label, **sections}, indent=1, default=str) + "\n"
    if form == "csv":
        return as_csv(Listing(history.events.columns, history.events.rows))
    parts = [
        f"{name}\n{plain(_for_people(getattr(history, name)))}"
        for name in _SECTIONS
        if getattr(history, name).rows
    ]
    return "\n".join([f"{label}\n", *parts])


def _for_people(table: Table) -> Listing:
    columns = tuple(_TIMES.get(name, name) for name in table.columns)
    return Listing(columns, tuple(_row(table.columns, row) for row in table.rows))


def _row(columns: tuple[str, ...], row: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_text(name, value) for name, value in zip(columns, row, strict=True))


def _text(column: str, value: Any) -> Any:
    if value is None:
        return None
    if column in _TIMES:
        return datetime.fromtimestamp(value).isoformat(sep=" ", timespec="milliseconds")
    if column == "seconds":
        return f"{value:.1f}"
    if column == "superseded":
        return "superseded" if value else ""
    return value
