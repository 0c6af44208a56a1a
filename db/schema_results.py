"""The tables of results: each row belongs to the unit that produced it."""

from __future__ import annotations

import sqlalchemy as sa

from dllm_sweep.db.schema_base import (
    VALUE_FLAGS,
    Base,
    Big,
    Id,
    Key64,
    Long,
    Mapped,
    Real,
    Seconds,
    mapped_column,
    one_of,
    to_unit,
)


class _OfUnit:
    trial_id: Mapped[int] = mapped_column(Id, primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unit_key: Mapped[str] = mapped_column(sa.Text(), primary_key=True)


class MetricRow(_OfUnit, Base):
    """One score of one task."""

    __tablename__ = "metric"
    __table_args__ = (to_unit(), one_of("value_flag", VALUE_FLAGS, name="value_flag"))
    task: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    value: Mapped[Real | None]
    value_flag: Mapped[str | None] = mapped_column(sa.String(4))
    stderr: Mapped[Real | None]
    n: Mapped[Big]
    higher_is_better: Mapped[bool]
    is_primary: Mapped[bool]


class ShardScoreRow(_OfUnit, Base):
    """One score of one shard of a task, as exact sums; views never see it.

    The sums are fractions as text, `numerator/denominator`. A score that is not finite has no
    sums: `value_flag` says what it was.
    """

    __tablename__ = "shard_score"
    __table_args__ = (to_unit(), one_of("value_flag", VALUE_FLAGS, name="value_flag"))
    task: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    n: Mapped[Big]
    total: Mapped[Long | None]
    squares: Mapped[Long | None]
    value_flag: Mapped[str | None] = mapped_column(sa.String(4))
    higher_is_better: Mapped[bool]
    is_primary: Mapped[bool]


class ModuleTable(_OfUnit, Base):
    """One linear layer as it was really quantized."""

    __tablename__ = "module"
    __table_args__ = (to_unit(),)
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
    __table_args__ = (to_unit(), one_of("value_flag", VALUE_FLAGS, name="value_flag"))
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
    __table_args__ = (to_unit(),)
    name: Mapped[Key64] = mapped_column(primary_key=True)
    value: Mapped[Real | None]
    unit: Mapped[Key64]


class ArtifactRow(_OfUnit, Base):
    """A file beside the store."""

    __tablename__ = "artifact"
    __table_args__ = (to_unit(),)
    kind: Mapped[Key64] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(sa.Text(), primary_key=True)
    sha256: Mapped[Key64]
    bytes: Mapped[Big]
    removed_s: Mapped[Seconds | None]
    """When the file was deleted to free space; NULL while it is there."""
