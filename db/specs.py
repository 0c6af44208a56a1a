"""The specs of a sweep's trials, for what has to know all of them before the first is claimed."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.schema import Trial
from dllm_sweep.records import TrialState
from dllm_sweep.spec import TrialSpec, from_json

_UNFINISHED = (TrialState.PENDING, TrialState.RUNNING)


def unfinished(connection: Connection, sweep_id: int) -> tuple[TrialSpec, ...]:
    """The specs of a sweep's trials that wait or run, in planning order."""
    query = (
        sa.select(Trial.spec)
        .where(Trial.sweep_id == sweep_id, Trial.state.in_(_UNFINISHED))
        .order_by(Trial.id)
    )
    return tuple(from_json(TrialSpec, spec) for spec in connection.scalars(query))
