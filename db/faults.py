"""What went wrong in a database, in one line, and whether it may pass by itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dllm_sweep.errors import StoreError, StoreUnavailable

BUSY_TIMEOUT_MS = 30_000

_PASSING_CODES = ("08", "57P", "53300", "40001", "40P01", "55P03", "57014", "25P03", "25P04")
"""Beginnings of Postgres error codes: links, shutdowns, too many clients, locks, time limits."""
_PASSING_TEXTS = (
    # SQLite.
    "is locked",
    # Postgres gives no code for what happens before or to a connection.
    "Connection refused",
    "Connection reset",
    "Connection timed out",
    "connection timeout",
    "timeout expired",
    "server closed the connection",
    "connection is closed",
    "connection is lost",
    "could not receive data",
    "could not send data",
    "No route to host",
    "Network is unreachable",
    "Temporary failure in name resolution",
    "the database system is",
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "consuming input failed",
    "SSL connection has been closed",
    "SSL SYSCALL error",
)
_ADVICE = (
    ("file is not a database", "not a store: the file holds something else than SQLite tables"),
    ("malformed", "the file is damaged; restore a copy, or start a new store with --store"),
    ("unable to open", "cannot be opened; check that the folder exists and may be written to"),
    ("readonly database", "is opened for reading only, or its file or folder may not be written"),
    ("read-only transaction", "is opened for reading only; only SELECT is allowed"),
    ("is full", "the disk is full; nothing of the last write was kept; free space, then resume"),
    (
        "No space left on device",
        "the server's disk is full; nothing of the last write was kept; free space, then resume",
    ),
    ("disk I/O error", "the disk reports an error; check its space and health, then resume"),
    ("is locked", f"is locked by another process for over {BUSY_TIMEOUT_MS // 1000} s; try again"),
    ("Connection refused", "the Postgres server does not answer; check host, port and server"),
    ("timeout expired", "the Postgres server does not answer; check host, port and server"),
    ("connection timeout", "the Postgres server does not answer; check host, port and server"),
    ("Name or service not known", "there is no such host; check the address"),
    ("too many c", "the Postgres server has no connection left; raise its max_connections"),
    (
        "remaining connection slots",
        "the Postgres server has no connection left; raise its max_connections",
    ),
    (
        "no password supplied",
        "the Postgres server wants a password: in the address, in PGPASSWORD or in ~/.pgpass",
    ),
    (
        "authentication failed",
        "the Postgres server refuses the user or the password; check the"
        " address, PGPASSWORD and ~/.pgpass",
    ),
    ("the database system is starting up", "the Postgres server is starting up; try again"),
    ("the database system is shutting down", "the Postgres server is shutting down"),
)


@contextmanager
def one_line(name: str) -> Iterator[None]:
    """Turn errors of the database into one line that names the store.

    Raises:
        StoreUnavailable: If the same call may succeed a little later.
        StoreError: For anything else.
    """
    try:
        yield
    except DBAPIError as error:
        kind = StoreUnavailable if may_pass(error) else StoreError
        raise kind(f"{name}: {explain(error)}") from error
    except PoolTimeout as error:
        text = f"{name}: all connections of this process are busy; try again"
        raise StoreUnavailable(text) from error


def is_cut_short(error: DBAPIError) -> bool:
    """Whether a transaction may be run again at once: its link was cut, or it was the one that the
    server ended because two waited for each other."""
    code = str(getattr(error.orig, "sqlstate", None) or "")
    return error.connection_invalidated or code in ("40P01", "40001")


def may_pass(error: DBAPIError) -> bool:
    """Whether an error comes from a link, a restart, a lock or a limit, not from what was asked."""
    if error.connection_invalidated:
        return True
    code = str(getattr(error.orig, "sqlstate", None) or "")
    if code:
        return code.startswith(_PASSING_CODES)
    text = _text(error)
    return any(symptom in text for symptom in _PASSING_TEXTS)


def explain(error: DBAPIError) -> str:
    """Say in one line what went wrong in the database and what to do about it."""
    text = _text(error)
    for symptom, advice in _ADVICE:
        if symptom in text:
            return advice
    return f"the database answered {type(error.orig).__name__}: {text}"


def _text(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
