"""Rows of the result tables from records, and back: databases keep finite numbers only."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

from sqlalchemy.engine import Row

from dllm_sweep.db.shards import FLAGGED, fraction_text
from dllm_sweep.records import Metric, OutlierRow
from dllm_sweep.tally import Tally


def finite(value: float | None) -> tuple[float | None, str | None]:
    """A value as the database keeps it: itself, or NULL and the name of what it was."""
    if value is None or math.isfinite(value):
        return value, None
    return None, str(float(value))


def metric_row(metric: Metric) -> dict[str, Any]:
    """A score of a whole task."""
    value, flag = finite(metric.value)
    return {
        "task": metric.task,
        "name": metric.name,
        "value": value,
        "value_flag": flag,
        "stderr": finite(metric.stderr)[0],
        "n": metric.n,
        "higher_is_better": metric.higher_is_better,
        "is_primary": metric.primary,
    }


def shard_score_row(metric: Metric) -> dict[str, Any]:
    """A score of one shard of a task."""
    tally = metric.tally
    return {
        "task": metric.task,
        "name": metric.name,
        "n": metric.n if tally is None else tally.n,
        "total": None if tally is None else fraction_text(tally.total),
        "squares": None if tally is None else fraction_text(tally.squares),
        "value_flag": finite(metric.value)[1] if tally is None else None,
        "higher_is_better": metric.higher_is_better,
        "is_primary": metric.primary,
    }


def shard_part(row: Row[Any]) -> Metric:
    """A shard's score as it was handed in, with its sums or as what it was instead of a number."""
    tally = None
    if row.value_flag is None:
        tally = Tally(n=row.n, total=Fraction(row.total), squares=Fraction(row.squares))
    return Metric(
        task=row.task,
        name=row.name,
        value=FLAGGED.get(row.value_flag, 0.0),
        stderr=None,
        n=row.n,
        higher_is_better=row.higher_is_better,
        primary=row.is_primary,
        tally=tally,
    )


def outlier_row(outlier: OutlierRow) -> dict[str, Any]:
    """An outlier statistic."""
    row = dataclasses.asdict(outlier)
    row["value"], row["value_flag"] = finite(outlier.value)
    row["element"] = row.pop("index")
    return row


def number_row(record: Any, number: str) -> dict[str, Any]:
    """A record whose field `number` may be no finite number."""
    row = dataclasses.asdict(record)
    row[number], _ = finite(row[number])
    return row
