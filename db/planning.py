"""Writing a plan into the store: the sweep, its trials, their units."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.history import log_created
from dllm_sweep.db.schema import ProtocolRow, Sweep, Trial, UnitRow
from dllm_sweep.records import PlannedTrial, TrialState
from dllm_sweep.spec import TrialSpec, to_json


def plan(connection: Connection, name: str, source: str, trials: Sequence[PlannedTrial]) -> int:
    """Create or extend the sweep `name`; returns its id."""
    sweep_id = _put_sweep(connection, name, source)
    known = set(connection.scalars(sa.select(Trial.trial_key).where(Trial.sweep_id == sweep_id)))
    new = {trial.spec.key: trial for trial in trials}
    new = {key: trial for key, trial in new.items() if key not in known}
    if new:
        _put_protocols(connection, new.values())
        at_s = connection.scalar(sa.select(db_now()))
        rows = [_trial_row(sweep_id, key, trial, at_s) for key, trial in new.items()]
        connection.execute(sa.insert(Trial), rows)
        _put_units(connection, sweep_id, new)
        log_created(connection, sweep_id)
    return sweep_id


def new_units(spec: TrialSpec, trial_id: int, generation: int) -> list[dict[str, Any]]:
    """The rows of all units of a trial, none of them done."""
    return [
        {
            "trial_id": trial_id,
            "generation": generation,
            "unit_key": unit.key,
            "position": position,
            "kind": unit.kind,
            "task": unit.task,
            "state": "PENDING",
            "warnings": [],
        }
        for position, unit in enumerate(spec.units())
    ]


def _put_sweep(connection: Connection, name: str, source: str) -> int:
    statement = _insert(connection, Sweep).values(
        name=name, source=source, created_s=db_now(), launched_s=db_now(), paused=False, epoch=0
    )
    statement = statement.on_conflict_do_update(
        index_elements=["name"], set_={"source": source, "launched_s": db_now()}
    )
    sweep_id: int = connection.execute(statement.returning(Sweep.id)).scalar_one()
    return sweep_id


def _put_protocols(connection: Connection, trials: Any) -> None:
    protocols = {trial.spec.protocol for trial in trials}
    rows = [{"key": protocol.key, "spec": to_json(protocol)} for protocol in protocols]
    connection.execute(_insert(connection, ProtocolRow).on_conflict_do_nothing(), rows)


def _put_units(connection: Connection, sweep_id: int, new: dict[str, PlannedTrial]) -> None:
    ids = connection.execute(sa.select(Trial.trial_key, Trial.id).where(Trial.sweep_id == sweep_id))
    rows = [
        row
        for key, trial_id in ids
        if key in new and new[key].skip_reason is None
        for row in new_units(new[key].spec, trial_id, 0)
    ]
    if rows:
        connection.execute(sa.insert(UnitRow), rows)


def _trial_row(sweep_id: int, key: str, trial: PlannedTrial, at_s: float | None) -> dict[str, Any]:
    spec, scheme = trial.spec, trial.spec.scheme
    state = TrialState.PENDING if trial.skip_reason is None else TrialState.SKIPPED
    return {
        "sweep_id": sweep_id,
        "trial_key": key,
        "label": trial.label,
        "spec": to_json(spec),
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
        "state": state,
        "reason": trial.skip_reason or "",
        "priority": trial.priority,
        "estimated_s": trial.estimated_s,
        "generation": 0,
        "attempt": 0,
        "epoch": 0,
        "failures": 0,
        "losses": 0,
        "batch_scale": 1.0,
        "not_before_s": 0.0,
        "created_s": at_s,
    }


def _insert(connection: Connection, table: type[Any]) -> Any:
    dialects = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
    return dialects[connection.dialect.name](table)
