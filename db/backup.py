"""A copy of a store while it is in use: all of it at one moment, or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL

from dllm_sweep.db.connect import current, resolve_url
from dllm_sweep.db.engines import safe_url
from dllm_sweep.errors import InputError, StoreError

_SERVER_FOLDERS = Path("/usr/lib/postgresql")


def backup(url_or_path: str | Path | None, target: Path) -> int:
    """Copy a store into a new file; returns its size in bytes.

    A SQLite store becomes a SQLite file, which is a store itself; one on Postgres becomes an
    archive for `pg_restore`.

    Args:
        url_or_path: The store; None as `open_store` takes it.
        target: The file to write; it must not exist.

    Raises:
        InputError: If the file exists or its folder does not.
        StoreError: If the store cannot be read, the disk is full, or `pg_dump` is missing.
    """
    url = resolve_url(url_or_path)
    if current(url_or_path) is None:
        raise StoreError(f"{safe_url(url)}: the store is empty; there is nothing to copy")
    with _new_file(target) as part:
        (_copy_sqlite if url.drivername == "sqlite" else _dump_postgres)(url, part)
        size = part.stat().st_size
    return size


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    """A name beside `target` that becomes it at the end: nobody meets half a copy."""
    if target.exists():
        raise InputError(f"{target}: exists already; name a new file")
    if not target.absolute().parent.is_dir():
        raise InputError(f"{target.absolute().parent}: there is no such folder")
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        try:
            # Unlike a rename, a link never replaces a file that has come up meanwhile.
            os.link(part, target)
        except FileExistsError:
            raise InputError(f"{target}: exists already; name a new file") from None
    finally:
        part.unlink(missing_ok=True)


def _copy_sqlite(url: URL, part: Path) -> None:
    source = Path(str(url.database)).absolute()
    try:
        with contextlib.closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as store:
            store.execute("VACUUM INTO ?", (str(part),))
    except sqlite3.Error as error:
        raise StoreError(f"{safe_url(url)}: cannot be copied to {part.parent}: {error}") from error


def _dump_postgres(url: URL, part: Path) -> None:
    command = [
        str(_pg_dump()),
        "--format=custom",
        "--no-password",
        "--file",
        str(part),
        "--dbname",
        _dsn(url),
    ]
    secret = {} if url.password is None else {"PGPASSWORD": str(url.password)}
    done = subprocess.run(
        command, env={**os.environ, **secret}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        text = " ".join(done.stderr.split())
        raise StoreError(f"{safe_url(url)}: pg_dump failed: {text}")


def _dsn(url: URL) -> str:
    """The address as libpq reads it, without the password: everybody may see a command line."""
    from psycopg.conninfo import make_conninfo

    parts: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "dbname": url.database,
    }
    options = {key: value for key, value in url.query.items() if "password" not in key}
    known = {key: value for key, value in {**parts, **options}.items() if value is not None}
    return make_conninfo("", **known)


def _pg_dump() -> Path:
    """The newest `pg_dump`: one older than its server refuses to work."""
    installed = [path for path in _SERVER_FOLDERS.glob("*/bin/pg_dump") if path.exists()]
    on_path = shutil.which("pg_dump")
    if installed:
        return max(installed, key=lambda path: (len(path.parts[-3]), path.parts[-3]))
    if on_path is None:
        raise StoreError(
            "a Postgres store is copied by pg_dump, which is missing: install it, as with:"
            " apt-get install postgresql-client"
        )
    return Path(on_path)
