"""What keeping a store clean asks of its tables: which rows name files, and which are at odds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dllm_sweep.db.clock import db_now
from dllm_sweep.db.schema import ArtifactRow, LogRow, Sweep, Trial, UnitRow
from dllm_sweep.records import TrialState
from dllm_sweep.spec import TrialSpec, from_json

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

T = TypeVar("T")

OPEN = (TrialState.PENDING, TrialState.RUNNING)
_AT_ONCE = 500
"""Values in one IN list: SQLite takes no more than some thousands."""


@dataclass(frozen=True, kw_only=True)
class NamedFile:
    """A row that names a file.

    Attributes:
        path: Relative to the folder for files.
        kind: Such as `weights` or `samples`.
        sha256: Digest of its content.
        bytes: Its size.
        removed: Whether `gc` has deleted it.
        current: Whether it belongs to the weights that the trial's results are measured on.
        host: The machine that wrote it.
        sweep: Its sweep's name.
        trial_key: Its trial's key.
        label: Its trial's name for people.
        state: Its trial's state.
        ended_ago_s: Seconds since its trial ended; None if it has not.
    """

    path: str
    kind: str
    sha256: str
    bytes: int
    removed: bool
    current: bool
    host: str
    sweep: str
    trial_key: str
    label: str
    state: TrialState
    ended_ago_s: float | None


@dataclass(frozen=True, kw_only=True)
class TrialEnd:
    """Whether and how long ago a trial ended, and how much its log takes in the store."""

    id: int
    key: str
    state: TrialState
    ended_ago_s: float | None
    log_rows: int
    log_bytes: int


def named_files(store: SqlStore) -> tuple[NamedFile, ...]:
    """All rows that name files, of all sweeps."""
    artifact, trial = ArtifactRow.__table__.c, Trial.__table__.c
    same_unit = (
        (UnitRow.trial_id == artifact.trial_id)
        & (UnitRow.generation == artifact.generation)
        & (UnitRow.unit_key == artifact.unit_key)
    )
    query = (
        sa.select(
            artifact.path,
            artifact.kind,
            artifact.sha256,
            artifact.bytes,
            artifact.removed_s.is_not(None).label("removed"),
            (artifact.generation == trial.generation).label("current"),
            UnitRow.host,
            Sweep.name.label("sweep"),
            trial.trial_key,
            trial.label,
            trial.state,
            _ended_ago(trial).label("ended_ago_s"),
        )
        .join(Trial, trial.id == artifact.trial_id)
        .join(UnitRow, same_unit)
        .join(Sweep, Sweep.id == trial.sweep_id)
        .order_by(trial.id, artifact.path)
    )
    rows = store.reading(lambda connection: connection.execute(query).all())
    return tuple(NamedFile(**{**row._mapping, "state": TrialState(row.state)}) for row in rows)


def trial_ends(store: SqlStore) -> tuple[TrialEnd, ...]:
    """All trials of all sweeps."""
    trial = Trial.__table__.c
    logs = (
        sa.select(
            LogRow.trial_id, sa.func.count().label("rows"), sa.func.sum(LogRow.bytes).label("bytes")
        )
        .group_by(LogRow.trial_id)
        .subquery()
    )
    query = sa.select(
        trial.id,
        trial.trial_key.label("key"),
        trial.state,
        _ended_ago(trial).label("ended_ago_s"),
        sa.func.coalesce(logs.c.rows, 0).label("log_rows"),
        sa.func.coalesce(logs.c.bytes, 0).label("log_bytes"),
    ).outerjoin(logs, logs.c.trial_id == trial.id)
    rows = store.reading(lambda connection: connection.execute(query).all())
    return tuple(TrialEnd(**{**row._mapping, "state": TrialState(row.state)}) for row in rows)


def specs(store: SqlStore, *, are_open: bool) -> dict[str, TrialSpec]:
    """What the trials are, by key: those that wait or run, or those of the others with weights."""
    trial, artifact = Trial.__table__.c, ArtifactRow.__table__.c
    query = sa.select(trial.trial_key, trial.spec)
    if are_open:
        query = query.where(trial.state.in_(OPEN))
    else:
        weights = sa.select(artifact.trial_id).where(
            artifact.kind == "weights", artifact.removed_s.is_(None)
        )
        query = query.where(trial.state.not_in(OPEN), trial.id.in_(weights))
    rows = store.reading(lambda connection: connection.execute(query).all())
    return {key: from_json(TrialSpec, spec) for key, spec in rows}


def forget_files(store: SqlStore, paths: Collection[str]) -> frozenset[str]:
    """Note that files are about to be deleted; returns those that may really be.

    A file that the current results of a trial need that waits or runs is left out, also if the
    trial began to need it since `named_files` was asked.
    """
    free: frozenset[str] = frozenset()
    for part in _parts(sorted(paths)):
        free |= store.writing(partial(_forget, paths=part))
    return free


def _forget(connection: Connection, paths: Sequence[str]) -> frozenset[str]:
    artifact, trial = ArtifactRow.__table__.c, Trial.__table__.c
    needed = (
        sa.select(artifact.path)
        .join(Trial, (trial.id == artifact.trial_id) & (trial.generation == artifact.generation))
        .where(trial.state.in_(OPEN), artifact.path.in_(paths))
    )
    free = frozenset(paths) - frozenset(connection.scalars(needed))
    connection.execute(
        sa.update(ArtifactRow)
        .where(artifact.path.in_(sorted(free)), artifact.removed_s.is_(None))
        .values(removed_s=db_now())
    )
    return free


def drop_logs(store: SqlStore, trial_ids: Collection[int]) -> None:
    """Delete the logs of trials that have succeeded from the store; of others nothing."""
    for part in _parts(sorted(trial_ids)):
        store.writing(partial(_drop, trial_ids=part))


def _drop(connection: Connection, trial_ids: Sequence[int]) -> None:
    succeeded = sa.select(Trial.id).where(
        Trial.id.in_(trial_ids), Trial.state == TrialState.SUCCEEDED
    )
    connection.execute(sa.delete(LogRow).where(LogRow.trial_id.in_(succeeded)))


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def now_s(store: SqlStore) -> float:
    """The database's clock, in epoch seconds."""
    return store.reading(lambda connection: connection.scalars(sa.select(db_now())).one())


def _ended_ago(
    trial: sa.ColumnCollection[str, sa.ColumnElement[object]],
) -> sa.ColumnElement[float]:
    still_open = trial.state.in_(OPEN)
    return sa.case((still_open, sa.null()), else_=db_now() - trial.finished_s)
