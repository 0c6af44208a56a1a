"""Opening a store: find it, create it when it is new, refuse one of another schema."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection

from dllm_sweep.db.engines import (
    Engines,
    migration_connection,
    one_line,
    open_engines,
    parse_url,
    safe_url,
)
from dllm_sweep.db.store import SqlStore
from dllm_sweep.db.transitions import DEFAULT_POLICY, RetryPolicy
from dllm_sweep.errors import SchemaOutOfDate, StoreEmpty, StoreError

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = [
    "DEFAULT_STORE",
    "STORE_VARIABLE",
    "current",
    "head",
    "open_store",
    "resolve_url",
    "safe_url",
    "upgrade",
]

DEFAULT_STORE = "sqlite:///dllm-sweep.db"
STORE_VARIABLE = "DLLM_SWEEP_STORE"
_MIGRATIONS = Path(__file__).parent / "migrations"


def open_store(
    url_or_path: str | Path | None = None,
    *,
    create: bool = True,
    policy: RetryPolicy = DEFAULT_POLICY,
) -> SqlStore:
    """Open a store, and create its tables if it is new and `create` allows it.

    Args:
        url_or_path: A file, `sqlite:///FILE` or `postgresql://...`; None takes the environment's
            DLLM_SWEEP_STORE, else `dllm-sweep.db` in the working folder.
        create: Whether a store that does not exist yet is made.
        policy: Budgets of attempts that new failures are judged by.

    Raises:
        StoreError: If there is no store, or it cannot be opened, or the file is something else.
        SchemaOutOfDate: If the tables are of another version than this program's.
    """
    url = resolve_url(url_or_path)
    name = safe_url(url)
    with one_line(name):
        if _is_missing(url):
            _require(create, f"{name}: there is no store; `dllm-sweep launch` makes one")
            _migrate(url)
        engines = open_engines(url)
        try:
            _make_ready(engines, name, create)
        except BaseException:
            engines.dispose()
            raise
        return SqlStore(engines, policy)


def _make_ready(engines: Engines, name: str, create: bool) -> None:
    """Fill an empty database; refuse one of another version, or of something else."""
    revision, empty = _look(engines)
    if revision is None:
        _require(empty, f"{name}: not a store: the database holds other tables")
        if not create:
            raise StoreEmpty(f"{name}: the database is empty; `dllm-sweep launch` fills it")
        _migrate(engines.url)
    elif revision != head():
        raise SchemaOutOfDate(f"{name}: {_out_of_date(name, revision)}")


def upgrade(url_or_path: str | Path | None = None) -> str:
    """Bring a store's tables to this program's version; returns that version.

    Raises:
        StoreError: If there is no store, or the migration fails; then nothing has changed.
    """
    url = resolve_url(url_or_path)
    name = safe_url(url)
    _require(not _is_missing(url), f"{name}: there is no store to upgrade")
    with one_line(name):
        revision, empty = _look_at(url)
        _require(revision is not None or empty, f"{name}: not a store: it holds other tables")
        _require(
            revision is None or revision in _known(),
            f"{name}: {_out_of_date(name, revision or '')}",
        )
        _migrate(url)
    return head()


def current(url_or_path: str | Path | None = None) -> str | None:
    """The version of a store's tables; None if it has none yet.

    Raises:
        StoreError: If there is no store or it cannot be read.
    """
    url = resolve_url(url_or_path)
    _require(not _is_missing(url), f"{safe_url(url)}: there is no store")
    with one_line(safe_url(url)):
        return _look_at(url)[0]


def head() -> str:
    """The version of the tables that this program works with."""
    return max(_known())


def _known() -> set[str]:
    # The files are named by their versions, and importing alembic costs every command 0.2 s.
    found = {path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9][0-9][0-9][0-9]_*.py")}
    if not found:
        raise StoreError(f"{_MIGRATIONS} holds no migration: install the package again")
    return found


def _out_of_date(name: str, revision: str) -> str:
    if revision in _known():
        return (
            f"its tables are of version {revision}, this program needs {head()};"
            f" run: dllm-sweep db upgrade --store {shlex.quote(name)}"
        )
    return (
        f"its tables are of version {revision}, which this program does not know (it has {head()});"
        " run: pip install --upgrade dllm-sweep"
    )


def resolve_url(url_or_path: str | Path | None = None) -> URL:
    """The address that `open_store` would open for this argument.

    Raises:
        StoreError: If it is not a store's address.
    """
    return parse_url(url_or_path or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)


def _is_missing(url: URL) -> bool:
    return url.drivername == "sqlite" and not Path(str(url.database)).exists()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise StoreError(message)


def _look_at(url: URL) -> tuple[str | None, bool]:
    engines = open_engines(url)
    try:
        return _look(engines)
    finally:
        engines.dispose()


def _look(engines: Engines) -> tuple[str | None, bool]:
    """The schema's version, and whether the database has no tables at all."""
    with engines.read.connect() as connection:
        tables = sa.inspect(connection).get_table_names()
        if "alembic_version" not in tables:
            return None, not tables
        version: sa.Select[str] = sa.select(
            sa.column("version_num", sa.String()),
        ).select_from(sa.table("alembic_version"))
        return connection.scalar(version), False


def _migrate(url: URL) -> None:
    from alembic import command

    with migration_connection(url) as connection:
        command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
