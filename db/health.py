"""Whether a store's tables are what this program works with, and whether they are sound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from dllm_sweep.db.connect import current, head, resolve_url
from dllm_sweep.db.engines import explain, one_line, open_engines
from dllm_sweep.db.schema import Base
from dllm_sweep.db.views import VIEWS


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        part: `version`, `tables`, `views`, `integrity` or `references`.
        sound: Whether it is as it should be.
        found: What was found, in one line.
    """

    part: str
    sound: bool
    found: str


def check(url_or_path: str | Path | None = None) -> tuple[Check, ...]:
    """Look at a store's tables; nothing is changed.

    Raises:
        StoreError: If there is no store or it cannot be read.
    """
    url = resolve_url(url_or_path)
    version = current(url_or_path)
    engines = open_engines(url)
    try:
        with one_line(engines.name), engines.read.connect() as connection:
            return tuple(_checks(connection, version))
    finally:
        engines.dispose()


def _checks(connection: Connection, version: str | None) -> Iterator[Check]:
    yield Check("version", version == head(), f"{version or 'none'}; this program needs {head()}")
    if version == head():
        yield _verdict("tables", _differences(connection), "as this program needs them")
        existing = sa.inspect(connection).get_view_names()
        missing = [f"{name} is missing" for name in VIEWS if name not in existing]
        yield _verdict("views", missing, f"all {len(VIEWS)} are there")
    if connection.dialect.name == "sqlite":
        yield from _sqlite_checks(connection)
    else:
        yield from _postgres_checks(connection)


def _verdict(part: str, faults: list[str], good: str) -> Check:
    return Check(part, not faults, "; ".join(faults) or good)


def _differences(connection: Connection) -> list[str]:
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return [_words(change) for change in compare_metadata(context, Base.metadata)]


def _words(change: Any) -> str:
    """One difference as alembic tells it, in words: what would have to be done to the tables."""
    first = change[0] if isinstance(change, list) else change
    kind, *what = first
    names = (str(getattr(part, "name", part)) for part in what if part is not None)
    return f"{str(kind).replace('_', ' ')} {' '.join(names)}"


def _sqlite_checks(connection: Connection) -> Iterator[Check]:
    lines = [row[0] for row in _pragma(connection, "integrity_check(10)")]
    yield _verdict("integrity", [line for line in lines if line != "ok"], "every page is sound")
    if lines == ["ok"]:
        broken = _pragma(connection, "foreign_key_check")[:10]
        faults = [f"row {row[1]} of {row[0]} has no {row[2]}" for row in broken]
        yield _verdict("references", faults, "every row has the rows it refers to")


def _pragma(connection: Connection, name: str) -> list[tuple[Any, ...]]:
    try:
        return [tuple(row) for row in connection.exec_driver_sql(f"PRAGMA {name}")]
    except DBAPIError as error:
        # A file can be damaged so much that not even looking for damage works.
        return [(explain(error),)]


def _postgres_checks(connection: Connection) -> Iterator[Check]:
    invalid = connection.exec_driver_sql(
        "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    )
    faults = [f"index {name} is not valid: REINDEX it" for (name,) in invalid]
    yield _verdict("integrity", faults, "every index is valid")
    unchecked = connection.exec_driver_sql(
        "SELECT conname FROM pg_constraint WHERE NOT convalidated"
    )
    faults = [f"{name} was never validated" for (name,) in unchecked]
    yield _verdict("references", faults, "every row has the rows it refers to")
