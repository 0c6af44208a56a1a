"""What all tables share: how they are declared, naming of constraints, kinds of columns,
references.

Tables are declared as with SQLAlchemy's ORM, and type checkers take them for that. At run time the
columns are plain ones: nothing here maps objects, importing the ORM would take a third of the time
of every short command, and its attributes make statements twice as slow to build.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, get_args, get_type_hints

import sqlalchemy as sa

if TYPE_CHECKING:
    from sqlalchemy.orm import DeclarativeBase
    from sqlalchemy.orm import Mapped as Mapped
    from sqlalchemy.orm import mapped_column as mapped_column
else:
    T = TypeVar("T")

    class Mapped(Generic[T]):
        """A column whose values are of type T."""

    class mapped_column:
        """What the type of a column does not say of it."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self.args, self.options = args, options

    class DeclarativeBase:
        """Makes a table of each class that names one, and its columns attributes of the class."""

        def __init_subclass__(cls) -> None:
            if name := vars(cls).get("__tablename__"):
                arguments = list(getattr(cls, "__table_args__", ()))
                options = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
                columns = list(_columns(cls))
                cls.__table__ = sa.Table(name, cls.metadata, *columns, *arguments, **options)
                for column in columns:
                    setattr(cls, column.name, column)

        @classmethod
        def __clause_element__(cls) -> sa.Table:
            """SQLAlchemy asks for it where a statement needs the table."""
            return cls.__table__


def _columns(declared: type[Any]) -> Iterator[sa.Column[Any]]:
    for name, hint in get_type_hints(declared, include_extras=True).items():
        (value,) = get_args(hint)
        nullable = type(None) in get_args(value)
        kind = get_args(value)[0] if nullable else value
        said: Any = getattr(declared, name, None) or mapped_column()
        typed = any(isinstance(argument, sa.types.TypeEngine) for argument in said.args)
        arguments = said.args if typed else (*_type_of(kind), *said.args)
        yield sa.Column(name, *arguments, **{"nullable": nullable, **said.options})


def _type_of(kind: Any) -> tuple[Any, ...]:
    annotated = getattr(kind, "__metadata__", None)
    return annotated[0].args if annotated else (_PLAIN[kind],)


_PLAIN = {int: sa.Integer(), bool: sa.Boolean()}

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
