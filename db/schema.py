"""The tables. All times are epoch seconds of the database's clock; every text key is ASCII.

The tables are private: what people query are the views of `views.py`.
"""

from __future__ import annotations

import sqlalchemy as sa

from dllm_sweep.db.schema_base import (
    UNIT_STATES,
    VALUE_FLAGS,
    Base,
    Big,
    Id,
    Json,
    Key64,
    Long,
    Mapped,
    Real,
    Seconds,
    mapped_column,
    one_of,
    to,
    to_row,
)
from dllm_sweep.db.schema_results import (
    ArtifactRow,
    CostRow,
    MetricRow,
    ModuleTable,
    OutlierTable,
    ShardScoreRow,
)
from dllm_sweep.records import EndReason, TrialState

__all__ = [
    "UNIT_STATES",
    "VALUE_FLAGS",
    "ArtifactRow",
    "Attempt",
    "Base",
    "CostRow",
    "DegradationClass",
    "EventRow",
    "FailureRow",
    "LogRow",
    "MetricRow",
    "ModuleTable",
    "OutlierTable",
    "ProtocolRow",
    "ShardScoreRow",
    "Sweep",
    "TaskGroup",
    "Trial",
    "UnitRow",
]


class Sweep(Base):
    """One sweep and the lease of the controller that runs it."""

    __tablename__ = "sweep"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text(), unique=True)
    source: Mapped[Long]
    created_s: Mapped[Seconds]
    launched_s: Mapped[Seconds]
    paused: Mapped[bool]
    epoch: Mapped[int]
    controller_host: Mapped[Long | None]
    controller_pid: Mapped[int | None]
    process_started_s: Mapped[Seconds | None]
    lease_until_s: Mapped[Seconds | None]


class ProtocolRow(Base):
    """One evaluation protocol: scores compare only within it."""

    __tablename__ = "protocol"
    key: Mapped[Key64] = mapped_column(primary_key=True)
    spec: Mapped[Json]


class Trial(Base):
    """One point of a sweep; `generation` counts the weights that its units were measured on."""

    __tablename__ = "trial"
    __table_args__ = (
        sa.UniqueConstraint("sweep_id", "trial_key"),
        sa.Index(None, "sweep_id", "state"),
        sa.Index(None, "model", "protocol_key"),
        sa.Index(None, "trial_key", "state"),
        sa.Index(None, "reused_from"),
        one_of("state", TrialState, name="state"),
        sa.CheckConstraint("attempt >= 0", name="attempt"),
        sa.CheckConstraint("(state = 'RUNNING') = (claim_id IS NOT NULL)", name="claim"),
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    sweep_id: Mapped[int] = mapped_column(Id, to("sweep.id"))
    trial_key: Mapped[Key64]
    label: Mapped[Long]
    spec: Mapped[Json]
    model: Mapped[Long]
    model_digest: Mapped[Long | None]
    method: Mapped[Long]
    method_version: Mapped[int]
    parameters: Mapped[Long]
    scheme: Mapped[Key64]
    w_bits: Mapped[int]
    a_bits: Mapped[int]
    kv_bits: Mapped[int]
    group_size: Mapped[int | None]
    symmetric: Mapped[bool | None]
    calibration: Mapped[Long | None]
    protocol_key: Mapped[Key64] = mapped_column(to("protocol.key"))
    seed: Mapped[Big]
    is_baseline: Mapped[bool]
    state: Mapped[str] = mapped_column(sa.String(16))
    reason: Mapped[Long]
    priority: Mapped[int]
    estimated_s: Mapped[Seconds]
    generation: Mapped[int]
    attempt: Mapped[int]
    epoch: Mapped[int]
    claim_id: Mapped[Key64 | None]
    failures: Mapped[int]
    losses: Mapped[int]
    batch_scale: Mapped[Real]
    weights_sha256: Mapped[Key64 | None]
    not_before_s: Mapped[Seconds]
    created_s: Mapped[Seconds]
    started_s: Mapped[Seconds | None]
    beat_s: Mapped[Seconds | None]
    finished_s: Mapped[Seconds | None]
    reused_from: Mapped[int | None] = mapped_column(Id, to("trial.id"))
    """The trial of another sweep whose results this one's are a copy of."""


class Attempt(Base):
    """One try at a trial; the history is kept for ever."""

    __tablename__ = "attempt"
    __table_args__ = (one_of("end_reason", EndReason, name="end_reason"),)
    trial_id: Mapped[int] = mapped_column(Id, to("trial.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    claim_id: Mapped[Key64]
    host: Mapped[Long]
    pid: Mapped[int]
    device: Mapped[Long]
    versions: Mapped[Json]
    batch_scale: Mapped[Real]
    started_s: Mapped[Seconds]
    ended_s: Mapped[Seconds | None]
    end_reason: Mapped[str | None] = mapped_column(sa.String(16))
    log_path: Mapped[Long | None]


class UnitRow(Base):
    """One unit of a trial in one generation of its weights."""

    __tablename__ = "unit"
    __table_args__ = (one_of("state", UNIT_STATES, name="state"),)
    trial_id: Mapped[int] = mapped_column(Id, to("trial.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unit_key: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    position: Mapped[int]
    kind: Mapped[Key64]
    task: Mapped[Long]
    shard: Mapped[int]
    shards: Mapped[int]
    estimated_s: Mapped[Seconds]
    state: Mapped[str] = mapped_column(sa.String(16))
    attempt: Mapped[int | None]
    wall_s: Mapped[Seconds | None]
    done_s: Mapped[Seconds | None]
    weights_sha256: Mapped[Key64 | None]
    warnings: Mapped[Json]
    host: Mapped[Long]
    device: Mapped[Long]


class FailureRow(Base):
    """Why an attempt failed, or why one of its workers was lost while the others went on.

    `worker` is empty for the failure that ended the attempt.
    """

    __tablename__ = "failure"
    __table_args__ = (
        to_row("attempt", "trial_id", "attempt"),
        one_of("reason", EndReason, name="reason"),
    )
    trial_id: Mapped[int] = mapped_column(Id, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    worker: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    reason: Mapped[str] = mapped_column(sa.String(16))
    failed_s: Mapped[Seconds]
    error_type: Mapped[Long]
    message: Mapped[Long]
    traceback: Mapped[Long]
    fingerprint: Mapped[Long] = mapped_column(index=True)
    unit: Mapped[Long]
    retryable: Mapped[bool]
    log_tail: Mapped[Long]


class EventRow(Base):
    """One change of a trial's state; rows are only ever added."""

    __tablename__ = "event"
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    trial_id: Mapped[int] = mapped_column(Id, to("trial.id"), index=True)
    attempt: Mapped[int]
    at_s: Mapped[Seconds]
    from_state: Mapped[str | None] = mapped_column(sa.String(16))
    to_state: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[Key64]
    reason: Mapped[Long]


class LogRow(Base):
    """A piece of what an attempt's workers printed.

    A row with `dropped_bytes` above 0 stands for the pieces that were dropped in its place.
    """

    __tablename__ = "log_chunk"
    __table_args__ = (
        to_row("attempt", "trial_id", "attempt"),
        sa.UniqueConstraint("trial_id", "attempt", "worker", "number"),
        sa.Index(None, "trial_id", "id"),
        # Readers ask for what came after a number: one that was given away never comes back.
        {"sqlite_autoincrement": True},
    )
    id: Mapped[int] = mapped_column(Id, primary_key=True)
    trial_id: Mapped[int] = mapped_column(Id)
    attempt: Mapped[int]
    worker: Mapped[Long]
    number: Mapped[int | None]
    at_s: Mapped[Seconds]
    text: Mapped[Long]
    bytes: Mapped[int]
    dropped_bytes: Mapped[Big]


class DegradationClass(Base):
    """A class of relative drops in percent; the thresholds are data that may be edited."""

    __tablename__ = "degradation_class"
    name: Mapped[Key64] = mapped_column(primary_key=True)
    min_rel: Mapped[Real | None]
    min_included: Mapped[bool]
    max_rel: Mapped[Real | None]
    max_included: Mapped[bool]


class TaskGroup(Base):
    """The group that a task belongs to; rows may be edited and added."""

    __tablename__ = "task_group"
    task: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    name: Mapped[Key64]
