"""A sweep's trials as a listing; one trial in full; the log of one attempt."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep.errors import InputError
from dllm_sweep.records import SweepRow, TrialRow, TrialState
from dllm_sweep.reports.listing import Listing, as_csv, plain
from dllm_sweep.reports.plans import duration
from dllm_sweep.spec import to_json

if TYPE_CHECKING:
    from dllm_sweep.db.reads import Table, TrialDetail

_SHORT_KEY = 8
_SECTIONS = ("units", "metrics", "costs", "modules", "attempts", "failures", "artifacts")
_TIMES = ("created_s", "started_s", "finished_s", "ended_s", "done_s")
_LONG_COLUMNS = ("traceback", "log_tail", "versions", "log_path")
"""Left out of tables for people; JSON has them, and `logs` prints them."""


def status_listing(trials: Sequence[TrialRow], *, full: bool) -> Listing:
    """One row a trial; `full` gives whole keys."""
    columns = ("key", "trial", "state", "units", "attempts", "reason")
    rows = tuple(
        (
            row.key if full else row.key[:_SHORT_KEY],
            row.label,
            str(row.state),
            f"{row.units_done}/{row.units}",
            row.attempt,
            row.reason,
        )
        for row in trials
    )
    return Listing(columns, rows)


def status_line(sweep: SweepRow, trials: Sequence[TrialRow]) -> str:
    """How many trials are in which state, and how much is left."""
    counts = Counter(str(row.state).lower() for row in trials)
    states = ", ".join(f"{number} {state}" for state, number in counts.items()) or "no trials"
    left_s = sum(
        row.estimated_s * (row.units - row.units_done) / row.units
        for row in trials
        if _is_left(row)
    )
    left = f"; about {duration(left_s)} left on one worker" if left_s else ""
    return f"sweep {sweep.name!r}{' (paused)' if sweep.paused else ''}: {states}{left}"


def is_over(trials: Sequence[TrialRow]) -> bool:
    """Whether nothing waits and nothing runs."""
    return not any(_is_left(row) for row in trials)


def _is_left(row: TrialRow) -> bool:
    return row.units > 0 and row.state in (TrialState.PENDING, TrialState.RUNNING)


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


def log_text(detail: TrialDetail, attempt: int | None, root: Path) -> str:
    """The log of an attempt, then the traceback if it failed.

    Args:
        detail: The trial.
        attempt: Number of the attempt; None is the last one.
        root: The folder for files beside the store.

    Raises:
        InputError: If the trial has no such attempt, or the attempt left no log.
    """
    attempts = detail.attempts.dicts()
    numbers = [row["attempt"] for row in attempts]
    if not numbers:
        raise InputError(f"{detail.trial['label']} has not run yet: there is no log")
    number = numbers[-1] if attempt is None else attempt
    if number not in numbers:
        listed = ", ".join(map(str, numbers))
        raise InputError(f"{detail.trial['label']} has no attempt {number} (there are: {listed})")
    path = _log_file(detail, number, root)
    failures = [row for row in detail.failures.dicts() if row["attempt"] == number]
    if path is None and not failures:
        raise InputError(f"attempt {number} of {detail.trial['label']} left no log in {root}")
    log = path.read_text(encoding="utf-8", errors="replace") if path else ""
    return "".join([log, *(_fault(row, log) for row in failures)])


def _log_file(detail: TrialDetail, attempt: int, root: Path) -> Path | None:
    from dllm_sweep.workers.files import log_path

    named = [row["log_path"] for row in detail.attempts.dicts() if row["attempt"] == attempt]
    # Only attempts that failed have their log in the store; the others' lie at the same place.
    usual = log_path(root, 0, detail.trial["trial_key"], attempt)
    key = usual.parent.name.removeprefix("0-")
    paths = [*(Path(name) for name in named if name), *root.glob(f"logs/*-{key}/{usual.name}")]
    return next((path for path in paths if path.is_file()), None)


def _fault(failure: dict[str, Any], log: str) -> str:
    end = "" if not log or log.endswith("\n") else "\n"
    trace = "" if failure["traceback"] in log else failure["traceback"].rstrip() + "\n"
    return f"{end}{trace}{failure['unit']}: {failure['error_type']}: {failure['message']}\n"
