"""The specs of trials, for what has to know all of them before the first is claimed."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.schema import Trial
from dllm_sweep.records import TrialState
from dllm_sweep.spec import TrialSpec, from_json

_UNFINISHED = (TrialState.PENDING, TrialState.RUNNING)


def unfinished(connection: Connection, sweep_id: int | None = None) -> tuple[TrialSpec, ...]:
    """The specs of trials that wait or run, in planning order; of all sweeps if none is named."""
    query = sa.select(Trial.spec).where(Trial.state.in_(_UNFINISHED)).order_by(Trial.id)
    if sweep_id is not None:
        query = query.where(Trial.sweep_id == sweep_id)
    return tuple(from_json(TrialSpec, spec) for spec in connection.scalars(query))
