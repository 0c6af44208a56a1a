"""What the controller reads: the board of one sweep, and what is learnt from all of them."""

from __future__ import annotations

import dataclasses

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.claims import waits_s
from dllm_sweep.db.schema import MetricRow, Trial, UnitRow
from dllm_sweep.db.transitions import RetryPolicy
from dllm_sweep.records import OPEN_STATES, Score, TrialRow, TrialState, UnitStanding, UnitTime
from dllm_sweep.spec import Unit

_CURRENT = (UnitRow.trial_id == Trial.id) & (UnitRow.generation == Trial.generation)
"""Units of the weights that a trial's results are measured on."""


NEWEST_TIMES = 20
"""Of units alike, so many tell how long the next one takes; a great store has many thousands."""
_TIME_COLUMNS = frozenset(field.name for field in dataclasses.fields(UnitTime))


def trials(connection: Connection, sweep_id: int, policy: RetryPolicy) -> tuple[TrialRow, ...]:
    """All trials of a sweep, highest priority first, then in planning order."""
    counts = (
        sa.select(
            UnitRow.trial_id,
            sa.func.count().label("units"),
            sa.func.sum(sa.case((UnitRow.state == "DONE", 1), else_=0)).label("units_done"),
        )
        .join(Trial, _CURRENT)
        .where(Trial.sweep_id == sweep_id)
        .group_by(UnitRow.trial_id)
        .subquery()
    )
    trial = Trial.__table__.c
    query = (
        sa.select(
            trial.id,
            trial.trial_key.label("key"),
            trial.label,
            trial.state,
            trial.attempt,
            trial.reason,
            trial.model,
            trial.method,
            sa.func.coalesce(counts.c.units, 0).label("units"),
            sa.func.coalesce(counts.c.units_done, 0).label("units_done"),
            trial.priority,
            trial.estimated_s,
            waits_s(policy).label("ready_in_s"),
            trial.scheme,
            trial.is_baseline,
        )
        .outerjoin(counts, counts.c.trial_id == trial.id)
        .where(trial.sweep_id == sweep_id)
        .order_by(trial.priority.desc(), trial.id)
    )
    rows = [dict(row._mapping) for row in connection.execute(query)]
    return tuple(TrialRow(**row | {"state": TrialState(row["state"])}) for row in rows)


def units(connection: Connection, sweep_id: int) -> tuple[UnitStanding, ...]:
    """All units of a sweep's PENDING and RUNNING trials, in the order in which they run."""
    unit = UnitRow.__table__.c
    query = (
        sa.select(
            unit.trial_id,
            unit.kind,
            unit.task,
            unit.shard,
            unit.shards,
            unit.estimated_s,
            unit.state == "DONE",
        )
        .join(Trial, _CURRENT)
        .where(Trial.sweep_id == sweep_id, Trial.state.in_(OPEN_STATES))
        .order_by(Trial.priority.desc(), Trial.id, unit.position)
    )
    return tuple(
        UnitStanding(
            trial_id=trial_id,
            unit=Unit(kind=kind, task=task, shard=shard, shards=shards),
            estimated_s=estimated_s,
            done=bool(done),
        )
        for trial_id, kind, task, shard, shards, estimated_s, done in connection.execute(query)
    )


def unit_times(connection: Connection) -> tuple[UnitTime, ...]:
    """How long the newest committed units of each kind took, oldest first; copies do not count."""
    unit = UnitRow.__table__.c
    alike = (Trial.model, Trial.method, Trial.scheme, unit.kind, unit.task, unit.device)
    newest_first = unit.done_s.desc(), unit.trial_id.desc(), unit.position.desc()
    age = sa.func.row_number().over(partition_by=alike, order_by=newest_first)
    ranked = (
        sa.select(
            *alike,
            unit.estimated_s,
            unit.wall_s,
            unit.done_s,
            unit.trial_id,
            unit.position,
            age.label("age"),
        )
        .join(Trial, Trial.id == unit.trial_id)
        .where(unit.state == "DONE", Trial.reused_from.is_(None))
        .subquery()
    )
    row = ranked.c
    query = (
        sa.select(*[column for column in row if column.name in _TIME_COLUMNS])
        .where(row.age <= NEWEST_TIMES)
        .order_by(row.done_s, row.trial_id, row.position)
    )
    return tuple(UnitTime(**found._mapping) for found in connection.execute(query))


def scores(connection: Connection, sweep_id: int) -> tuple[Score, ...]:
    """The primary scores of all wholly committed tasks of a sweep, by trial and task."""
    metric = MetricRow.__table__.c
    query = (
        sa.select(
            metric.trial_id,
            metric.task,
            metric.value,
            metric.stderr,
            metric.n,
            metric.higher_is_better,
        )
        .join(Trial, (metric.trial_id == Trial.id) & (metric.generation == Trial.generation))
        .where(Trial.sweep_id == sweep_id, metric.is_primary)
        .order_by(metric.trial_id, metric.task, metric.name)
    )
    return tuple(Score(**row._mapping) for row in connection.execute(query))
