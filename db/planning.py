"""Writing a plan into the store: the sweep, its trials, their units."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db import reuse
from dllm_sweep.db.bulk import insert_rows
from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import log_created
from dllm_sweep.db.schema import ProtocolRow, Sweep, Trial
from dllm_sweep.db.transitions import Actor, check
from dllm_sweep.errors import StoreError
from dllm_sweep.records import PlannedTrial, PlannedUnit, TrialState
from dllm_sweep.spec import Unit, to_json, with_places

_UNIT_COLUMNS = (
    "trial_id",
    "generation",
    "unit_key",
    "position",
    "kind",
    "task",
    "shard",
    "shards",
    "estimated_s",
    "state",
    "warnings",
    "host",
    "device",
)


def plan(
    connection: Connection,
    name: str,
    source: str,
    trials: Sequence[PlannedTrial],
    *,
    reuse_results: bool,
) -> int:
    """Create or extend the sweep `name`; returns its id.

    Raises:
        StoreError: If the units of a trial are not its tasks, whole or cut into all their shards.
    """
    sweep_id = _put_sweep(connection, name, source)
    known = set(connection.scalars(sa.select(Trial.trial_key).where(Trial.sweep_id == sweep_id)))
    new = {trial.spec.key: trial for trial in trials}
    _move_data(connection, sweep_id, [new[key] for key in new.keys() & known])
    new = {key: trial for key, trial in new.items() if key not in known}
    if not new:
        return sweep_id
    legal = [key for key, trial in new.items() if trial.skip_reason is None]
    units = {key: planned_units(new[key]) for key in legal}
    found = reuse.sources(connection, sweep_id, legal) if reuse_results else {}
    before = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(Trial.id), 0))) or 0
    _put_protocols(connection, new.values())
    _put_trials(connection, sweep_id, new, found)
    _put_units(connection, sweep_id, {key: units[key] for key in legal if key not in found})
    if found:
        reuse.copy_results(connection, sweep_id, before)
    log_created(connection, sweep_id, before)
    return sweep_id


def _move_data(connection: Connection, sweep_id: int, trials: Sequence[PlannedTrial]) -> None:
    """Note where the data of trials lie by now: equal data elsewhere are the same trial."""
    placed = {
        trial.spec.key: json.loads(with_places(trial.spec))
        for trial in trials
        if any(task.data is not None for task in trial.spec.protocol.tasks)
    }
    if not placed:
        return
    query = sa.select(Trial.id, Trial.trial_key, Trial.spec).where(Trial.sweep_id == sweep_id)
    for row in connection.execute(query).all():
        spec = placed.get(row.trial_key, row.spec)
        if spec != row.spec:
            connection.execute(sa.update(Trial).where(Trial.id == row.id).values(spec=spec))


def planned_units(trial: PlannedTrial) -> tuple[PlannedUnit, ...]:
    """The trial's units as planned; uncut, with even parts of its estimate, if it names none.

    Raises:
        StoreError: If they are not its tasks, whole or cut into all their shards.
    """
    whole = trial.spec.units()
    if not trial.units:
        share = trial.estimated_s / max(len(whole), 1)
        return tuple(PlannedUnit(unit=unit, estimated_s=share) for unit in whole)
    units = tuple(planned.unit for planned in trial.units)
    if units != whole and not _covers(units, whole):
        raise StoreError(
            f"trial {trial.label}: its planned units are not those of its specification;"
            " plan every task once, whole or in all its shards"
        )
    return trial.units


@lru_cache(maxsize=256)
def _covers(units: tuple[Unit, ...], whole: tuple[Unit, ...]) -> bool:
    shards = {(unit.kind, unit.task): unit.shards for unit in units}
    expected = [
        Unit(kind=unit.kind, task=unit.task, shard=shard, shards=count)
        for unit in whole
        for count in [shards.get((unit.kind, unit.task), 0)]
        for shard in range(count)
    ]
    cut_only_tasks = all(unit.shards == 1 or unit.kind == "evaluate" for unit in units)
    return (
        cut_only_tasks and len(shards) == len(whole) and sorted_keys(units) == sorted_keys(expected)
    )


def sorted_keys(units: Iterable[Unit]) -> list[str]:
    """The keys of units in alphabetical order."""
    return sorted(unit.key for unit in units)


def _put_sweep(connection: Connection, name: str, source: str) -> int:
    statement = _insert(connection, Sweep).values(
        name=name, source=source, created_s=db_now(), launched_s=db_now(), paused=False, epoch=0
    )
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_={"source": source, "launched_s": db_now()}
    )
    sweep_id: int = connection.execute(statement.returning(Sweep.id)).scalar_one()
    return sweep_id


def _put_protocols(connection: Connection, trials: Iterable[PlannedTrial]) -> None:
    # Sorted: two plans that add the same rows in opposite orders would wait for each other.
    protocols = {trial.spec.protocol.key: trial.spec.protocol for trial in trials}
    rows = [{"key": key, "spec": to_json(protocol)} for key, protocol in sorted(protocols.items())]
    connection.execute(_insert(connection, ProtocolRow).on_conflict_do_nothing(), rows)


def _put_trials(
    connection: Connection,
    sweep_id: int,
    new: dict[str, PlannedTrial],
    found: dict[str, reuse.Origin],
) -> None:
    at_s = connection.scalar(sa.select(db_now()))
    rows = [_trial_row(key, trial, found.get(key)) for key, trial in new.items()]
    same = {"sweep_id": sweep_id, "created_s": at_s} | _FRESH
    columns = (*same, *rows[0])
    insert_rows(connection, "trial", columns, ((*same.values(), *row.values()) for row in rows))


_FRESH = {
    "generation": 0,
    "attempt": 0,
    "epoch": 0,
    "failures": 0,
    "losses": 0,
    "batch_scale": 1.0,
    "not_before_s": 0.0,
}


def _put_units(
    connection: Connection, sweep_id: int, units: dict[str, tuple[PlannedUnit, ...]]
) -> None:
    ids = connection.execute(sa.select(Trial.trial_key, Trial.id).where(Trial.sweep_id == sweep_id))
    rows = (
        (trial_id, 0, *row)
        for key, trial_id in ids.all()
        if key in units
        for row in _unit_rows(units[key])
    )
    insert_rows(connection, "unit", _UNIT_COLUMNS, rows)


def _unit_rows(units: tuple[PlannedUnit, ...]) -> Iterator[tuple[Any, ...]]:
    """What rows of `unit` say after trial and generation."""
    for position, planned in enumerate(units):
        unit = planned.unit
        same = unit.key, position, unit.kind, unit.task, unit.shard, unit.shards
        yield *same, planned.estimated_s, "PENDING", "[]", "", ""


def _trial_row(key: str, trial: PlannedTrial, origin: reuse.Origin | None) -> dict[str, Any]:
    spec, scheme = trial.spec, trial.spec.scheme
    state, reason = _first_state(trial, origin)
    check(None, state, Actor.PLANNER)
    return {
        "trial_key": key,
        "label": trial.label,
        "spec": with_places(spec),
        "model": str(spec.model),
        "model_digest": spec.model.digest,
        "method": spec.method,
        "method_version": spec.method_version,
        "parameters": json.dumps({name: to_json(value) for name, value in spec.parameters}),
        "scheme": str(scheme),
        "w_bits": scheme.w_bits,
        "a_bits": scheme.a_bits,
        "kv_bits": scheme.kv_bits,
        "group_size": scheme.group_size,
        "symmetric": scheme.symmetric,
        "calibration": None if spec.calibration is None else str(spec.calibration),
        "protocol_key": spec.protocol.key,
        "seed": spec.seed,
        "is_baseline": spec.is_baseline,
        "state": str(state),
        "reason": reason,
        "priority": trial.priority,
        "estimated_s": trial.estimated_s,
        "reused_from": None if origin is None else origin.trial_id,
        "weights_sha256": None if origin is None else origin.weights_sha256,
        "finished_s": None if origin is None else origin.finished_s,
    }


def _first_state(trial: PlannedTrial, origin: reuse.Origin | None) -> tuple[TrialState, str]:
    if trial.skip_reason is not None:
        return TrialState.SKIPPED, trial.skip_reason
    if origin is not None:
        return TrialState.SUCCEEDED, origin.reason
    return TrialState.PENDING, ""


def _insert(connection: Connection, table: type[Any]) -> Any:
    # Importing both dialects would cost every command the one that its store does not have.
    if connection.dialect.name == "sqlite":
        from sqlalchemy.dialects import sqlite

        return sqlite.insert(table)
    from sqlalchemy.dialects import postgresql

    return postgresql.insert(table)
