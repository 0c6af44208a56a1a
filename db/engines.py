"""Connections: one engine that writes and one that only reads."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError

from dllm_sweep.db.faults import BUSY_TIMEOUT_MS, explain, one_line
from dllm_sweep.db.mounts import refuse_network
from dllm_sweep.errors import StoreError

__all__ = [
    "Engines",
    "explain",
    "migration_connection",
    "one_line",
    "open_engines",
    "parse_url",
    "safe_url",
]

_POSTGRES = ("postgres", "postgresql", "postgresql+psycopg")
_FORMS = "write sqlite:///FILE or postgresql://USER@HOST/DATABASE"


@dataclass(frozen=True)
class Engines:
    """The two ways into one store. Both are safe to use from several threads.

    Pickled, they are the address alone, with its password: another process opens its own.
    """

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

    def __reduce__(self) -> tuple[Any, ...]:
        return _open_again, (_wherever(self.url).render_as_string(hide_password=False),)


def parse_url(text: str | Path) -> URL:
    """Read a store's address: a file's path, `sqlite:///path` or `postgresql://...`.

    Raises:
        StoreError: If the address has another form; a password in it is not repeated.
    """
    if isinstance(text, Path) or "://" not in text:
        if str(text).startswith(tuple(f"{name}:" for name in _POSTGRES)):
            raise StoreError(f"{str(text).split(':')[0]}:...: not a store's address; {_FORMS}")
        return URL.create("sqlite", database=str(text))
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        # The error's own words may hold a piece of the password.
        scheme = text.split("://")[0]
        raise StoreError(f"{scheme}://...: not a store's address; {_FORMS}") from None
    if url.drivername in _POSTGRES:
        return _with_password_in_its_place(url.set(drivername="postgresql+psycopg"))
    if url.drivername == "sqlite" and url.database:
        return url
    raise StoreError(f"{safe_url(url)}: not a store's address; {_FORMS}")


def _with_password_in_its_place(url: URL) -> URL:
    """`?password=` means the same as `USER:PASSWORD@`, and only that is hidden everywhere."""
    written = url.query.get("password")
    if written is None:
        return url
    return url.difference_update_query(["password"]).set(password=str(written))


def safe_url(url: str | Path | URL) -> str:
    """The address as it may be printed: without the password."""
    parsed = url if isinstance(url, URL) else parse_url(url)
    parsed = parsed.set(query={k: v for k, v in parsed.query.items() if "password" not in k})
    # The driver is not the user's business, and the address is easier to copy without it.
    plain = parsed.set(drivername=parsed.drivername.partition("+")[0])
    return plain.render_as_string(hide_password=True)


def open_engines(url: URL) -> Engines:
    """Make both engines; nothing connects yet.

    Raises:
        StoreError: If the driver of Postgres is not installed, or a file lies on a network
            file system.
    """
    if url.drivername == "sqlite":
        refuse_network(Path(str(url.database)))
        return Engines(url, _sqlite_engine(url, "rw"), _sqlite_engine(url, "ro"))
    reader = _postgres_engine(url, "read", _READING)
    _reads_only_on_postgres(reader)
    return Engines(url, _postgres_engine(url, "write", _WRITING), reader)


def _open_again(address: str) -> Engines:
    return open_engines(parse_url(address))


def _wherever(url: URL) -> URL:
    """The same address for a process with another working folder."""
    if url.drivername != "sqlite":
        return url
    return url.set(database=str(Path(str(url.database)).absolute()))


@contextmanager
def migration_connection(url: URL) -> Iterator[Connection]:
    """A connection inside one write transaction that may rebuild tables.

    Foreign keys are off on SQLite: dropping a table in a batch migration would otherwise fail or
    delete rows that refer to it. They are checked whole at the end.
    """
    if url.drivername != "sqlite":
        engine = _postgres_engine(url, "migrate", _MIGRATING)
    else:
        refuse_network(Path(str(url.database)))
        engine = _sqlite_engine(url, "rwc", foreign_keys=False)
    try:
        with engine.begin() as connection:
            if url.drivername != "sqlite":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('dllm-sweep'))"))
            yield connection
            _check_foreign_keys(connection)
    finally:
        engine.dispose()


_WRITING = {"statement_timeout": 60_000, "lock_timeout": 10_000}
_READING: dict[str, int | str] = {
    "statement_timeout": 300_000,
    "lock_timeout": 10_000,
    # Compiling the leaderboard's query takes Postgres five times as long as running it.
    "jit": "off",
    "work_mem": "32MB",
}
_MIGRATING = {"lock_timeout": 60_000}
"""Times in milliseconds. A migration may take its time, but waits for nobody for ever."""
_IDLE = {"idle_in_transaction_session_timeout": 60_000}
_LINK: dict[str, Any] = {
    # A machine that vanishes does not close its links: half a minute of silence is probed, and
    # what is not acknowledged within a minute counts as lost.
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


def _postgres_engine(url: URL, role: str, limits: Mapping[str, int | str]) -> Engine:
    settings = " ".join(f"-c {name}={value}" for name, value in {**limits, **_IDLE}.items())
    ours = {**_LINK, "application_name": f"dllm-sweep/{role}", "options": settings}
    chosen = {name: value for name, value in ours.items() if name not in url.query}
    try:
        # Statements that the server has prepared for one client break behind pgbouncer.
        return sa.create_engine(
            url, pool_pre_ping=True, connect_args={**chosen, "prepare_threshold": None}
        )
    except ImportError:
        driver = "Postgres needs its driver: pip install 'dllm-sweep[postgres]'"
        raise StoreError(driver) from None


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
