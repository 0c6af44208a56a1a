"""The leaderboard by groups of tasks: each mean with its error, its loss and its list of tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dllm_sweep.reports.leaderboard import SCORES_SQL, number_text
from dllm_sweep.reports.listing import Listing, as_csv, as_json, markdown, plain
from dllm_sweep.reports.told_apart import axis_texts, differing_axes
from dllm_sweep.spec import FULL_PRECISION, FULL_PRECISION_METHOD

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

GROUPS_SQL = """SELECT * FROM group_scores
ORDER BY sweep, protocol_key, model, task_group,
CASE WHEN method = 'fp' THEN 0 ELSE 1 END, score_mean DESC, label, trial_key"""
_LEGEND = (
    "Means ± one standard error over the tasks listed; drop is the loss relative to full precision"
    "\nover the same tasks, in percent: negligible below 1, moderate to 4, significant above."
)

GroupMean = Mapping[str, Any]
"""One row of the view `group_scores`, with `stderr` beside its mean."""


def group_means(store: SqlStore, sweep: str | None = None) -> tuple[GroupMean, ...]:
    """The means of all task groups of all trials, full precision first, then the best.

    Args:
        store: Where the results are.
        sweep: Name of a sweep; None is all.
    """
    rows = [row for row in store.query(GROUPS_SQL).dicts() if sweep in (None, row["sweep"])]
    errors = {
        (row["sweep"], row["trial_key"], row["task"]): row["stderr"]
        for row in store.query(SCORES_SQL).dicts()
    }
    return tuple(_with_error(row, errors) for row in rows)


def render_groups(found: Sequence[GroupMean], form: str) -> str:
    """Write means as `table`, `json`, `csv` or `markdown`."""
    whole = Listing(tuple(found[0]), tuple(tuple(row.values()) for row in found)) if found else None
    if form in ("json", "csv"):
        return {"json": as_json, "csv": as_csv}[form](whole or Listing((), ()))
    if whole is None:
        return "no results yet\n"
    write = markdown if form == "markdown" else plain
    boards = groupby(found, key=lambda row: (row["sweep"], row["protocol_key"]))
    gap = "\n" if form == "markdown" else ""
    tables = [
        f"Sweep {sweep}, protocol {protocol[:8]}\n{gap}{write(_short(list(rows)))}"
        for (sweep, protocol), rows in boards
    ]
    return "\n".join(tables if form == "markdown" else [*tables, f"{_LEGEND}\n"])


def _with_error(row: GroupMean, errors: Mapping[tuple[str, str, str], float | None]) -> GroupMean:
    """Add the mean's standard error; None if one of its tasks has none."""
    tasks = row["tasks"].split(", ")
    each = [errors.get((row["sweep"], row["trial_key"], task)) for task in tasks]
    known = [error for error in each if error is not None]
    stderr = math.hypot(*known) / len(tasks) if len(known) == len(tasks) else None
    fields = list(row.items())
    place = list(row).index("score_mean") + 1
    return dict([*fields[:place], ("stderr", stderr), *fields[place:]])


def _short(rows: Sequence[GroupMean]) -> Listing:
    axes = differing_axes(rows)
    told = axis_texts(rows, axes)
    columns = ("model", "group", "method", "scheme", *axes, "mean", "drop", "class", "tasks")
    return Listing(columns, tuple(map(_row, rows, told)))


def _row(row: GroupMean, axes: Sequence[str]) -> tuple[object, ...]:
    error = "" if row["stderr"] is None else f" ± {number_text(row['stderr'])}"
    drop = row["relative_drop_percent"]
    is_baseline = row["method"] == FULL_PRECISION_METHOD
    scheme = "" if row["scheme"] == str(FULL_PRECISION) else row["scheme"]
    return (
        *(row["model"], row["task_group"], row["method"], scheme),
        *axes,
        number_text(row["score_mean"]) + error,
        "" if drop is None or is_baseline else f"{drop:+.1f}",
        "baseline" if is_baseline else row["degradation"] or row["note"],
        _tasks(row),
    )


def _tasks(row: GroupMean) -> str:
    missing = row["tasks_planned"] - row["tasks_done"]
    return f"{row['tasks']} ({missing} not there yet)" if missing else str(row["tasks"])
