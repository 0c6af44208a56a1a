"""A sweep's trials as a listing; one trial in full; the log of one attempt."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dllm_sweep.reports.listing import Listing, as_csv, plain
from dllm_sweep.spec import to_json

if TYPE_CHECKING:
    from dllm_sweep.db.reads import Table, TrialDetail

_SECTIONS = ("units", "metrics", "costs", "modules", "attempts", "failures", "artifacts")
_TIMES = ("created_s", "started_s", "finished_s", "ended_s", "done_s")
_LONG_COLUMNS = ("traceback", "log_tail", "versions", "log_path")
"""Left out of tables for people; JSON has them, and `logs` prints them."""


def render_detail(detail: TrialDetail, form: str) -> str:
    """Everything about one trial: sections of tables, one JSON object, or its scores as CSV."""
    if form == "json":
        return json.dumps(_detail_json(detail), indent=1, default=str) + "\n"
    if form == "csv":
        return as_csv(Listing(detail.metrics.columns, detail.metrics.rows))
    facts = {
        key: _for_people(key, value)
        for key, value in detail.trial.items()
        if value not in (None, "")
    }
    parts = [plain(Listing(("", ""), tuple(facts.items()))).lstrip("\n")]
    for name in _SECTIONS:
        table: Table = getattr(detail, name)
        if table.rows:
            parts.append(f"{name}\n{plain(_shortened(table))}")
    return "\n".join(parts)


def _shortened(table: Table) -> Listing:
    kept = [index for index, name in enumerate(table.columns) if name not in _LONG_COLUMNS]
    rows = tuple(
        tuple(_for_people(table.columns[index], row[index]) for index in kept) for row in table.rows
    )
    return Listing(tuple(table.columns[index] for index in kept), rows)


def _for_people(column: str, value: Any) -> Any:
    if column in _TIMES and value is not None:
        return datetime.fromtimestamp(value).isoformat(sep=" ", timespec="seconds")
    return value


def _detail_json(detail: TrialDetail) -> dict[str, Any]:
    tables = {name: getattr(detail, name).dicts() for name in _SECTIONS}
    return {**detail.trial, "spec": to_json(detail.spec), **tables}
