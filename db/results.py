"""Committing a unit: all rows of its result in one transaction, visible once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import end_attempts, move
from dllm_sweep.db.result_rows import (
    metric_row,
    number_row,
    outlier_row,
    shard_part,
    shard_score_row,
)
from dllm_sweep.db.schema import (
    ArtifactRow,
    CostRow,
    MetricRow,
    ModuleTable,
    OutlierTable,
    ShardScoreRow,
    Trial,
    UnitRow,
)
from dllm_sweep.db.shards import first_shard, merge, refuse_unmergeable
from dllm_sweep.db.transitions import Actor
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import Claim, EndReason, TrialState, UnitResult
from dllm_sweep.spec import Unit


def commit(connection: Connection, claim: Claim, result: UnitResult) -> TrialState:
    """Write a unit's result under a claim that has just been proved to hold."""
    trial = _trial(connection, claim)
    unit = _unit(connection, trial, result)
    weights = weights_digest(claim, result, trial.weights_sha256)
    if result.unit.kind == "quantize":
        if _settles(unit, claim, weights):
            return TrialState.RUNNING
        if _any_done(connection, trial):
            trial = _supersede(connection, trial)
        _set_weights(connection, trial, weights)
    else:
        refuse_before_quantize(claim, result, quantized=_quantized(connection, trial))
        if unit.state == "DONE":
            return TrialState.RUNNING
        refuse_other_weights(claim, result, trial.weights_sha256)
    _put_result(connection, trial, claim, result, weights)
    return _finish(connection, trial)


def committed_before(connection: Connection, claim: Claim, result: UnitResult) -> TrialState | None:
    """SUCCEEDED if this attempt has committed this unit, and with it finished the trial."""
    query = (
        sa.select(Trial.state)
        .join(UnitRow, (UnitRow.trial_id == Trial.id) & (UnitRow.generation == Trial.generation))
        .where(Trial.id == claim.trial_id, Trial.state == TrialState.SUCCEEDED)
        .where(Trial.attempt == claim.attempt, Trial.epoch == claim.epoch)
        .where(UnitRow.unit_key == result.unit.key, UnitRow.attempt == claim.attempt)
    )
    state = connection.scalar(query)
    return None if state is None else TrialState(state)


def weights_digest(claim: Claim, result: UnitResult, current: str | None) -> str | None:
    """The digest of the weights that a result was measured on, or that it made."""
    if result.unit.kind != "quantize":
        return current
    made = [artifact.sha256 for artifact in result.artifacts if artifact.kind == "weights"]
    if len(made) > 1:
        raise StoreError(f"trial {claim.trial_key[:12]}: quantize gave {len(made)} weights files")
    return made[0] if made else None


def refuse_before_quantize(claim: Claim, result: UnitResult, *, quantized: bool) -> None:
    """Refuse a result that was measured before the weights it belongs to are known.

    Raises:
        StoreError: If the trial has a `quantize` unit and it is not done.
    """
    if not quantized:
        raise StoreError(
            f"trial {claim.trial_key[:12]}: {result.unit.key} was measured before quantize was"
            " committed; commit quantize first"
        )


def refuse_other_weights(claim: Claim, result: UnitResult, current: str | None) -> None:
    """Refuse a result that was measured on weights that have been superseded since.

    Raises:
        Fenced: If the result names other weights than the trial's.
    """
    if result.weights_sha256 not in (None, current):
        raise Fenced(
            f"trial {claim.trial_key[:12]}: {result.unit.key} was measured on weights that have"
            " been superseded"
        )


def _trial(connection: Connection, claim: Claim) -> Any:
    query = sa.select(Trial.id, Trial.generation, Trial.weights_sha256)
    return connection.execute(query.where(Trial.id == claim.trial_id)).one()


def _unit(connection: Connection, trial: Row[Any], result: UnitResult) -> Any:
    query = sa.select(UnitRow.state, UnitRow.attempt, UnitRow.weights_sha256).where(
        *_current(trial), UnitRow.unit_key == result.unit.key
    )
    row = connection.execute(query).first()
    if row is None:
        raise StoreError(f"trial {trial.id} has no unit {result.unit.key}")
    return row


def _settles(unit: Row[Any], claim: Claim, weights: str | None) -> bool:
    """Whether the weights are proved to be those that are committed, or this is a repeat.

    An attempt may quantize twice: the file of the first weights may have been lost meanwhile.
    """
    if unit.state != "DONE" or weights != unit.weights_sha256:
        return False
    return bool(weights is not None or unit.attempt == claim.attempt)


def _current(trial: Row[Any]) -> tuple[sa.ColumnElement[bool], ...]:
    return UnitRow.trial_id == trial.id, UnitRow.generation == trial.generation


def _any_done(connection: Connection, trial: Row[Any]) -> bool:
    query = sa.select(UnitRow.unit_key).where(*_current(trial), UnitRow.state == "DONE")
    return connection.execute(query.limit(1)).first() is not None


def _quantized(connection: Connection, trial: Row[Any]) -> bool:
    waiting = sa.select(UnitRow.unit_key).where(
        *_current(trial), UnitRow.kind == "quantize", UnitRow.state != "DONE"
    )
    return connection.execute(waiting).first() is None


def _supersede(connection: Connection, trial: Row[Any]) -> Any:
    """Start a new generation: what was measured on other weights stays, but out of sight."""
    generation = trial.generation + 1
    connection.execute(sa.update(Trial).where(Trial.id == trial.id).values(generation=generation))
    row = UnitRow.__table__.c
    planned = (row.position, row.kind, row.task, row.shard, row.shards, row.estimated_s)
    fresh = {
        "generation": sa.literal(generation),
        "state": sa.literal("PENDING"),
        "warnings": sa.literal([], sa.JSON()),
        "host": sa.literal(""),
        "device": sa.literal(""),
    }
    copied = (row.trial_id, row.unit_key, *planned)
    selected = sa.select(*copied, *fresh.values()).where(*_current(trial))
    columns = [*(column.name for column in copied), *fresh]
    connection.execute(sa.insert(UnitRow).from_select(columns, selected))
    query = sa.select(Trial.id, Trial.generation, Trial.weights_sha256)
    return connection.execute(query.where(Trial.id == trial.id)).one()


def _set_weights(connection: Connection, trial: Row[Any], weights: str | None) -> None:
    connection.execute(sa.update(Trial).where(Trial.id == trial.id).values(weights_sha256=weights))


def _put_result(
    connection: Connection, trial: Row[Any], claim: Claim, result: UnitResult, weights: str | None
) -> None:
    rows: Sequence[tuple[type[Any], list[dict[str, Any]]]] = (
        _scores(result),
        (ModuleTable, [number_row(row, "relative_error") for row in result.modules]),
        (OutlierTable, [outlier_row(row) for row in result.outliers]),
        (CostRow, [number_row(cost, "value") for cost in result.costs]),
        (ArtifactRow, [dataclasses.asdict(artifact) for artifact in result.artifacts]),
    )
    for table, values in rows:
        _insert(connection, table, _key(trial, result.unit), values)
    connection.execute(
        sa.update(UnitRow)
        .where(*_current(trial), UnitRow.unit_key == result.unit.key)
        .values(
            state="DONE",
            attempt=claim.attempt,
            wall_s=result.wall_s,
            done_s=db_now(),
            weights_sha256=weights,
            warnings=list(result.warnings),
            host=result.host,
            device=result.device,
        )
    )
    if result.unit.shards > 1:
        _merge_shards(connection, trial, result.unit)


def _scores(result: UnitResult) -> tuple[type[Any], list[dict[str, Any]]]:
    if result.unit.shards == 1:
        return MetricRow, [metric_row(metric) for metric in result.metrics]
    refuse_unmergeable(result.unit, result.metrics)
    return ShardScoreRow, [shard_score_row(metric) for metric in result.metrics]


def _merge_shards(connection: Connection, trial: Row[Any], unit: Unit) -> None:
    """Write a task's scores if all of its shards are done."""
    of_task = *_current(trial), UnitRow.kind == unit.kind, UnitRow.task == unit.task
    waiting = sa.select(UnitRow.unit_key).where(*of_task, UnitRow.state != "DONE").limit(1)
    if connection.execute(waiting).first() is not None:
        return
    part = ShardScoreRow.__table__.c
    query = sa.select(ShardScoreRow.__table__).where(
        part.trial_id == trial.id,
        part.generation == trial.generation,
        part.unit_key.in_(sa.select(UnitRow.unit_key).where(*of_task)),
    )
    parts = [shard_part(row) for row in connection.execute(query.order_by(part.unit_key))]
    merged = [metric_row(metric) for metric in merge(unit, parts)]
    _insert(connection, MetricRow, _key(trial, first_shard(unit)), merged)


def _key(trial: Row[Any], unit: Unit) -> dict[str, Any]:
    return {"trial_id": trial.id, "generation": trial.generation, "unit_key": unit.key}


def _insert(
    connection: Connection, table: type[Any], key: dict[str, Any], values: list[dict[str, Any]]
) -> None:
    if values:
        connection.execute(sa.insert(table), [key | value for value in values])


def _finish(connection: Connection, trial: Row[Any]) -> TrialState:
    waiting = sa.select(UnitRow.unit_key).where(*_current(trial), UnitRow.state != "DONE")
    if connection.execute(waiting.limit(1)).first() is not None:
        return TrialState.RUNNING
    this = Trial.id == trial.id
    end_attempts(connection, this, EndReason.OK)
    move(connection, this, TrialState.RUNNING, TrialState.SUCCEEDED, Actor.OWNER, "")
    return TrialState.SUCCEEDED
