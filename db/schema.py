"""The tables. All times are epoch seconds of the database's clock; every text key is ASCII.

The tables are private: what people query are the views of `views.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dllm_sweep.records import EndReason, TrialState

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
UNIT_STATES = ("PENDING", "DONE")
VALUE_FLAGS = ("nan", "inf", "-inf")
"""How a value that is no finite number is kept: the value is NULL and the flag says what it was."""

_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Key64 = Annotated[str, mapped_column(sa.String(64))]
Long = Annotated[str, mapped_column(sa.Text())]
Seconds = Annotated[float, mapped_column(sa.Double())]
Real = Annotated[float, mapped_column(sa.Double())]
Json = Annotated[Any, mapped_column(sa.JSON())]
Big = Annotated[int, mapped_column(sa.BigInteger())]


class Base(DeclarativeBase):
    """All tables of the store."""

    metadata = sa.MetaData(naming_convention=NAMING)


def _one_of(column: str, values: Iterable[str | StrEnum], *, name: str) -> sa.CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=name)


def _to(target: str) -> sa.ForeignKey:
    return sa.ForeignKey(target, ondelete="RESTRICT")


def _to_row(table: str, *columns: str) -> sa.ForeignKeyConstraint:
    there = [f"{table}.{name}" for name in columns]
    return sa.ForeignKeyConstraint(columns, there, ondelete="RESTRICT")


def _to_unit() -> sa.ForeignKeyConstraint:
    return _to_row("unit", "trial_id", "generation", "unit_key")


class Sweep(Base):
    """One sweep and the lease of the controller that runs it."""

    __tablename__ = "sweep"
    id: Mapped[int] = mapped_column(_id, primary_key=True)
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
        _one_of("state", TrialState, name="state"),
        sa.CheckConstraint("attempt >= 0", name="attempt"),
        sa.CheckConstraint("(state = 'RUNNING') = (claim_id IS NOT NULL)", name="claim"),
    )
    id: Mapped[int] = mapped_column(_id, primary_key=True)
    sweep_id: Mapped[int] = mapped_column(_id, _to("sweep.id"))
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
    protocol_key: Mapped[Key64] = mapped_column(_to("protocol.key"))
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


class Attempt(Base):
    """One try at a trial; the history is kept for ever."""

    __tablename__ = "attempt"
    __table_args__ = (_one_of("end_reason", EndReason, name="end_reason"),)
    trial_id: Mapped[int] = mapped_column(_id, _to("trial.id"), primary_key=True)
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
    __table_args__ = (_one_of("state", UNIT_STATES, name="state"),)
    trial_id: Mapped[int] = mapped_column(_id, _to("trial.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unit_key: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    position: Mapped[int]
    kind: Mapped[Key64]
    task: Mapped[Long]
    state: Mapped[str] = mapped_column(sa.String(16))
    attempt: Mapped[int | None]
    wall_s: Mapped[Seconds | None]
    done_s: Mapped[Seconds | None]
    weights_sha256: Mapped[Key64 | None]
    warnings: Mapped[Json]


class _OfUnit:
    trial_id: Mapped[int] = mapped_column(_id, primary_key=True, sort_order=-3)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, sort_order=-2)
    unit_key: Mapped[str] = mapped_column(sa.Text(), primary_key=True, sort_order=-1)


class MetricRow(_OfUnit, Base):
    """One score of one task."""

    __tablename__ = "metric"
    __table_args__ = (_to_unit(), _one_of("value_flag", VALUE_FLAGS, name="value_flag"))
    task: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    value: Mapped[Real | None]
    value_flag: Mapped[str | None] = mapped_column(sa.String(4))
    stderr: Mapped[Real | None]
    n: Mapped[Big]
    higher_is_better: Mapped[bool]
    is_primary: Mapped[bool]


class ModuleTable(_OfUnit, Base):
    """One linear layer as it was really quantized."""

    __tablename__ = "module"
    __table_args__ = (_to_unit(),)
    module: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    w_bits: Mapped[int]
    a_bits: Mapped[int]
    group_size: Mapped[int | None]
    symmetric: Mapped[bool]
    weights: Mapped[Big]
    bits: Mapped[Real]
    relative_error: Mapped[Real | None]


class OutlierTable(_OfUnit, Base):
    """One statistic of the input of one linear layer."""

    __tablename__ = "outlier"
    __table_args__ = (_to_unit(), _one_of("value_flag", VALUE_FLAGS, name="value_flag"))
    module: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    mask_ratio: Mapped[Real] = mapped_column(primary_key=True)
    positions: Mapped[Key64] = mapped_column(primary_key=True)
    statistic: Mapped[Key64] = mapped_column(primary_key=True)
    rank: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    layer: Mapped[int]
    element: Mapped[Big | None]
    value: Mapped[Real | None]
    value_flag: Mapped[str | None] = mapped_column(sa.String(4))


class CostRow(_OfUnit, Base):
    """One measured cost."""

    __tablename__ = "cost"
    __table_args__ = (_to_unit(),)
    name: Mapped[Key64] = mapped_column(primary_key=True)
    value: Mapped[Real | None]
    unit: Mapped[Key64]


class ArtifactRow(_OfUnit, Base):
    """A file beside the store."""

    __tablename__ = "artifact"
    __table_args__ = (_to_unit(),)
    kind: Mapped[Key64] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    sha256: Mapped[Key64]
    bytes: Mapped[Big]


class FailureRow(Base):
    """Why an attempt failed."""

    __tablename__ = "failure"
    __table_args__ = (_to_row("attempt", "trial_id", "attempt"),)
    trial_id: Mapped[int] = mapped_column(_id, primary_key=True)
    attempt: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
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
    id: Mapped[int] = mapped_column(_id, primary_key=True)
    trial_id: Mapped[int] = mapped_column(_id, _to("trial.id"), index=True)
    attempt: Mapped[int]
    at_s: Mapped[Seconds]
    from_state: Mapped[str | None] = mapped_column(sa.String(16))
    to_state: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[Key64]
    reason: Mapped[Long]


class DegradationClass(Base):
    """A class of relative drops in percent; the thresholds are data that may be edited."""

    __tablename__ = "degradation_class"
    name: Mapped[Key64] = mapped_column(primary_key=True)
    min_rel: Mapped[Real | None]
    min_included: Mapped[bool]
    max_rel: Mapped[Real | None]
    max_included: Mapped[bool]
