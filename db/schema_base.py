"""What all tables share: naming of constraints, kinds of columns, references."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, mapped_column

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

Id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Key64 = Annotated[str, mapped_column(sa.String(64))]
Long = Annotated[str, mapped_column(sa.Text())]
Seconds = Annotated[float, mapped_column(sa.Double())]
Real = Annotated[float, mapped_column(sa.Double())]
Json = Annotated[Any, mapped_column(sa.JSON())]
Big = Annotated[int, mapped_column(sa.BigInteger())]


class Base(DeclarativeBase):
    """All tables of the store."""

    metadata = sa.MetaData(naming_convention=NAMING)


def one_of(column: str, values: Iterable[str | StrEnum], *, name: str) -> sa.CheckConstraint:
    """A check that a text column holds one of `values`."""
    listed = ", ".join(f"'{value}'" for value in values)
    return sa.CheckConstraint(f"{column} IN ({listed})", name=name)


def to(target: str) -> sa.ForeignKey:
    """A reference of one column that keeps its target from being deleted."""
    return sa.ForeignKey(target, ondelete="RESTRICT")


def to_row(table: str, *columns: str) -> sa.ForeignKeyConstraint:
    """A reference of several columns to those of the same names in `table`."""
    there = [f"{table}.{name}" for name in columns]
    return sa.ForeignKeyConstraint(columns, there, ondelete="RESTRICT")


def to_unit() -> sa.ForeignKeyConstraint:
    """A reference to the unit that produced a row."""
    return to_row("unit", "trial_id", "generation", "unit_key")
