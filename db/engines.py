"""Connections: one engine that writes and one that only reads, and errors as one line."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from dllm_sweep.errors import StoreError

BUSY_TIMEOUT_MS = 30_000
_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")


@dataclass(frozen=True)
class Engines:
    """The two ways into one store. Both are safe to use from several threads."""

    url: URL
    write: Engine
    read: Engine

    @property
    def name(self) -> str:
        """The store's address with the password hidden."""
        return safe_url(self.url)

    def dispose(self) -> None:
        """Close all connections."""
        self.write.dispose()
        self.read.dispose()


def parse_url(text: str | Path) -> URL:
    """Read a store's address: a file's path, `sqlite:///path` or `postgresql://...`.

    Raises:
        StoreError: If the address has another form.
    """
    if isinstance(text, Path) or "://" not in text:
        return URL.create("sqlite", database=str(text))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise StoreError(
            f"{text.split('://')[0]}://...: not a store's address; write sqlite:///FILE or"
            " postgresql://USER@HOST/DATABASE"
        ) from error
    if url.drivername in _POSTGRES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database:
        return url
    raise StoreError(
        f"{safe_url(url)}: not a store's address; write sqlite:///FILE or"
        " postgresql://USER@HOST/DATABASE"
    )


def safe_url(url: str | Path | URL) -> str:
    """The address as it may be printed: without the password."""
    parsed = url if isinstance(url, URL) else parse_url(url)
    return parsed.render_as_string(hide_password=True)


def open_engines(url: URL) -> Engines:
    """Make both engines; nothing connects yet.

    Raises:
        StoreError: If the driver of Postgres is not installed.
    """
    if url.drivername == "sqlite":
        return Engines(url, _sqlite_engine(url, "rw"), _sqlite_engine(url, "ro"))
    try:
        engine = sa.create_engine(url, pool_pre_ping=True)
        reader = sa.create_engine(url, pool_pre_ping=True)
    except ImportError as error:
        raise StoreError("Postgres needs its driver: pip install 'dllm-sweep[postgres]'") from error
    _reads_only_on_postgres(reader)
    return Engines(url, engine, reader)


@contextmanager
def migration_connection(url: URL) -> Iterator[Connection]:
    """A connection inside one write transaction that may rebuild tables.

    Foreign keys are off on SQLite: dropping a table in a batch migration would otherwise fail or
    delete rows that refer to it. They are checked whole at the end.
    """
    if url.drivername != "sqlite":
        engine = sa.create_engine(url)
    else:
        engine = _sqlite_engine(url, "rwc", foreign_keys=False)
    try:
        with engine.begin() as connection:
            if url.drivername != "sqlite":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('dllm-sweep'))"))
            yield connection
            _check_foreign_keys(connection)
    finally:
        engine.dispose()


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn errors of the database into a StoreError of one line that names the store."""
    try:
        yield
    except DBAPIError as error:
        raise StoreError(f"{name}: {explain(error)}") from error


def explain(error: DBAPIError) -> str:
    """Say in one line what went wrong in the database and what to do about it."""
    text = " ".join(str(error.orig).split())
    for symptom, advice in _ADVICE:
        if symptom in text:
            return advice
    return f"the database answered {type(error.orig).__name__}: {text}"


_ADVICE = (
    ("file is not a database", "not a store: the file holds something else than SQLite tables"),
    ("malformed", "the file is damaged; restore a copy, or start a new store with --store"),
    ("unable to open", "cannot be opened; check that the folder exists and may be written to"),
    ("readonly database", "is opened for reading only, or its file or folder may not be written"),
    ("read-only transaction", "is opened for reading only; only SELECT is allowed"),
    ("is full", "the disk is full; nothing of the last write was kept; free space, then resume"),
    ("disk I/O error", "the disk reports an error; check its space and health, then resume"),
    ("is locked", f"is locked by another process for over {BUSY_TIMEOUT_MS // 1000} s; try again"),
    ("Connection refused", "the Postgres server does not answer; check host, port and server"),
)


def _sqlite_engine(url: URL, mode: str, *, foreign_keys: bool = True) -> Engine:
    path = Path(str(url.database)).absolute()

    def connect() -> sqlite3.Connection:
        # isolation_level None: SQLAlchemy's own BEGIN is deferred, and a deferred transaction
        # that reads and then writes fails at once with SQLITE_BUSY whatever the timeout.
        return sqlite3.connect(
            f"{path.as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT_MS / 1000,
        )

    size: dict[str, Any] = {} if mode == "ro" else {"pool_size": 1, "max_overflow": 0}
    pool = sa.pool.QueuePool
    engine = sa.create_engine("sqlite://", creator=connect, poolclass=pool, **size)
    pragmas = _PRAGMAS_READ if mode == "ro" else _PRAGMAS_WRITE
    begin = "BEGIN" if mode == "ro" else "BEGIN IMMEDIATE"

    def on_connect(connection: sqlite3.Connection, record: object) -> None:
        for pragma in (*pragmas, f"foreign_keys = {int(foreign_keys)}"):
            connection.execute(f"PRAGMA {pragma}")

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    sa.event.listen(engine, "connect", on_connect)
    sa.event.listen(engine, "begin", on_begin)
    return engine


# FULL: after a power cut the last claim must still be there, or its attempt number would repeat.
_PRAGMAS_WRITE = (
    f"busy_timeout = {BUSY_TIMEOUT_MS}",
    "journal_mode = WAL",
    "synchronous = FULL",
)
_PRAGMAS_READ = (f"busy_timeout = {BUSY_TIMEOUT_MS}", "query_only = ON")


def _reads_only_on_postgres(engine: Engine) -> None:
    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql("SET TRANSACTION READ ONLY")

    sa.event.listen(engine, "begin", on_begin)


def _check_foreign_keys(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        table, _, parent, _ = broken[0]
        raise StoreError(f"the migration left rows of {table} without their row of {parent}")
