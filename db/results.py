"""Committing a unit: all rows of its result in one transaction, visible once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import end_attempts, move
from dllm_sweep.db.planning import new_units
from dllm_sweep.db.schema import (
    ArtifactRow,
    CostRow,
    MetricRow,
    ModuleTable,
    OutlierTable,
    Trial,
    UnitRow,
)
from dllm_sweep.db.transitions import Actor
from dllm_sweep.errors import StoreError
from dllm_sweep.records import Claim, EndReason, Metric, OutlierRow, TrialState, UnitResult


def commit(connection: Connection, claim: Claim, result: UnitResult) -> TrialState:
    """Write a unit's result under a claim that has just been proved to hold."""
    trial = _trial(connection, claim)
    unit = _unit(connection, trial, result)
    weights = weights_digest(claim, result, trial.weights_sha256)
    if result.unit.kind == "quantize":
        if _settles(unit, claim, weights):
            return TrialState.RUNNING
        if _any_done(connection, trial):
            trial = _supersede(connection, trial, claim)
        _set_weights(connection, trial, weights)
    else:
        refuse_before_quantize(claim, result, quantized=_quantized(connection, trial))
        if unit.state == "DONE":
            return TrialState.RUNNING
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


def finite(value: float | None) -> tuple[float | None, str | None]:
    """A value as the database keeps it: itself, or NULL and the name of what it was."""
    if value is None or math.isfinite(value):
        return value, None
    return None, str(float(value))


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
    """Whether this attempt has committed it, or the weights are proved to be the same."""
    if unit.state != "DONE":
        return False
    same = weights is not None and weights == unit.weights_sha256
    return bool(unit.attempt == claim.attempt or same)


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


def _supersede(connection: Connection, trial: Row[Any], claim: Claim) -> Any:
    """Start a new generation: what was measured on other weights stays, but out of sight."""
    generation = trial.generation + 1
    connection.execute(sa.update(Trial).where(Trial.id == trial.id).values(generation=generation))
    connection.execute(sa.insert(UnitRow), new_units(claim.trial, trial.id, generation))
    return _trial(connection, claim)


def _set_weights(connection: Connection, trial: Row[Any], weights: str | None) -> None:
    connection.execute(sa.update(Trial).where(Trial.id == trial.id).values(weights_sha256=weights))


def _put_result(
    connection: Connection, trial: Row[Any], claim: Claim, result: UnitResult, weights: str | None
) -> None:
    key = {
        "trial_id": trial.id,
        "generation": trial.generation,
        "unit_key": result.unit.key,
    }
    rows: Sequence[tuple[type[Any], list[dict[str, Any]]]] = (
        (MetricRow, [_metric(metric) for metric in result.metrics]),
        (ModuleTable, [_plain(row, "relative_error") for row in result.modules]),
        (OutlierTable, [_outlier(row) for row in result.outliers]),
        (CostRow, [_plain(cost, "value") for cost in result.costs]),
        (ArtifactRow, [dataclasses.asdict(artifact) for artifact in result.artifacts]),
    )
    for table, values in rows:
        if values:
            connection.execute(sa.insert(table), [key | value for value in values])
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
        )
    )


def _finish(connection: Connection, trial: Row[Any]) -> TrialState:
    waiting = sa.select(UnitRow.unit_key).where(*_current(trial), UnitRow.state != "DONE")
    if connection.execute(waiting.limit(1)).first() is not None:
        return TrialState.RUNNING
    this = Trial.id == trial.id
    end_attempts(connection, this, EndReason.OK)
    move(connection, this, TrialState.RUNNING, TrialState.SUCCEEDED, Actor.OWNER, "")
    return TrialState.SUCCEEDED


def _metric(metric: Metric) -> dict[str, Any]:
    row = dataclasses.asdict(metric)
    row["value"], row["value_flag"] = finite(metric.value)
    row["stderr"], _ = finite(metric.stderr)
    row["is_primary"] = row.pop("primary")
    return row


def _outlier(outlier: OutlierRow) -> dict[str, Any]:
    row = dataclasses.asdict(outlier)
    row["value"], row["value_flag"] = finite(outlier.value)
    row["element"] = row.pop("index")
    return row


def _plain(record: Any, number: str) -> dict[str, Any]:
    row = dataclasses.asdict(record)
    row[number], _ = finite(row[number])
    return row
