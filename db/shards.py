"""Scores of a task that was cut into shards: kept as exact sums, merged when all are there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from dllm_sweep.errors import StoreError
from dllm_sweep.records import Metric
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally

FLAGGED = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Scores that are no finite numbers, by the flag under which the database keeps them."""


def refuse_unmergeable(unit: Unit, metrics: Iterable[Metric]) -> None:
    """Refuse a shard's metrics that could not be merged with those of the others.

    Raises:
        StoreError: If a finite score comes without its exact sums.
    """
    for metric in metrics:
        if metric.tally is None and math.isfinite(metric.value):
            raise StoreError(
                f"{unit.key}: the score {metric.name} comes without its exact sums; only tasks"
                " whose scores are means may be cut into shards"
            )


def first_shard(unit: Unit) -> Unit:
    """The shard that the merged scores of a task are written under."""
    return dataclasses.replace(unit, shard=0)


def merge(unit: Unit, parts: Sequence[Metric]) -> tuple[Metric, ...]:
    """The metrics of a whole task from those of all its shards, sorted by name.

    A member of a group has its scores in the shards with items of its own; the task's own scores
    are in all of them.

    Raises:
        StoreError: If a score of the task itself is missing in one of the shards.
    """
    names = sorted({(part.task, part.name) for part in parts})
    return tuple(
        _merged(unit, [part for part in parts if (part.task, part.name) == name]) for name in names
    )


def _merged(unit: Unit, parts: Sequence[Metric]) -> Metric:
    if len(parts) != unit.shards and parts[0].task == unit.task:
        raise StoreError(
            f"{unit.key}: {len(parts)} of {unit.shards} shards have the score {parts[0].name};"
            " all shards of a task must come from one version of it"
        )
    wild = [part.value for part in parts if part.tally is None]
    total = sum((part.tally for part in parts if part.tally is not None), Tally())
    items = total.n + sum(part.n for part in parts if part.tally is None)
    if wild or not items:
        value, stderr = sum(wild) if wild else math.nan, None
    else:
        value, stderr = total.mean, total.stderr
    return dataclasses.replace(parts[0], value=value, stderr=stderr, n=items, tally=None)


def fraction_text(value: Fraction) -> str:
    """A fraction as the database keeps it."""
    return f"{value.numerator}/{value.denominator}"
