"""Results taken over from another sweep of the store: the same trial is never run twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.schema import (
    ArtifactRow,
    CostRow,
    MetricRow,
    ModuleTable,
    OutlierTable,
    ShardScoreRow,
    Sweep,
    Trial,
    UnitRow,
)
from dllm_sweep.records import TrialState

_COPIED: tuple[type[Any], ...] = (
    UnitRow,
    MetricRow,
    ShardScoreRow,
    ModuleTable,
    OutlierTable,
    CostRow,
    ArtifactRow,
)
"""Tables of a trial's results; units first, the others refer to them."""
_AT_ONCE = 5000
"""Keys in one query: SQLite takes 32,766 parameters."""


@dataclass(frozen=True)
class Origin:
    """The trial of another sweep that a new one takes its results from.

    Attributes:
        trial_id: Its number.
        sweep: Its sweep's name.
        weights_sha256: The weights that its results were measured on.
        finished_s: When it succeeded.
    """

    trial_id: int
    sweep: str
    weights_sha256: str | None
    finished_s: float | None

    @property
    def reason(self) -> str:
        """Why the new trial has succeeded already."""
        return reason_of(self.sweep)


def reason_of(sweep: str) -> str:
    """Why a trial has succeeded that was never run."""
    return f"reused from sweep {sweep!r}"


def sources(connection: Connection, sweep_id: int, keys: Sequence[str]) -> dict[str, Origin]:
    """For each key that has SUCCEEDED in another sweep, the first trial that did so."""
    found: dict[str, Origin] = {}
    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        query = (
            sa.select(Trial.trial_key, Trial.id, Sweep.name, Trial.weights_sha256, Trial.finished_s)
            .join(Sweep, Sweep.id == Trial.sweep_id)
            .where(Trial.trial_key.in_(some), Trial.state == TrialState.SUCCEEDED)
            .where(Trial.sweep_id != sweep_id)
            .order_by(Trial.id.desc())
        )
        for key, trial_id, sweep, weights, finished_s in connection.execute(query):
            found[key] = Origin(trial_id, sweep, weights, finished_s)
    return found


def copy_results(connection: Connection, sweep_id: int, after_id: int) -> None:
    """Copy what the origins of a sweep's new trials measured on their current weights.

    Args:
        connection: An open write transaction that has just written the trials.
        sweep_id: The sweep.
        after_id: Only trials of a higher number are new.
    """
    new, old = Trial.__table__.alias("new"), Trial.__table__.alias("old")
    for model in _COPIED:
        table = model.__table__
        changed: dict[str, Any] = {"trial_id": new.c.id, "generation": sa.literal(0)}
        if model is UnitRow:
            # No attempt of the new trial made it.
            changed["attempt"] = sa.null()
        selected = (
            sa.select(*(changed.get(column.name, column) for column in table.c))
            .join_from(new, old, old.c.id == new.c.reused_from)
            .join(table, (table.c.trial_id == old.c.id) & (table.c.generation == old.c.generation))
            .where(new.c.sweep_id == sweep_id, new.c.id > after_id)
        )
        connection.execute(sa.insert(table).from_select(table.c.keys(), selected))
