"""Opening a store: find it, create it when it is new, refuse one of another schema."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import URL, Connection

from dllm_sweep.db.engines import (
    migration_connection,
    one_line,
    open_engines,
    parse_url,
    safe_url,
)
from dllm_sweep.db.store import SqlStore
from dllm_sweep.db.transitions import DEFAULT_POLICY, RetryPolicy
from dllm_sweep.errors import SchemaOutOfDate, StoreError

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
        revision, empty = _look(url)
        if revision is None:
            _require(empty, f"{name}: not a store: the database holds other tables")
            _require(create, f"{name}: the database is empty; `dllm-sweep launch` fills it")
            _migrate(url)
        elif revision != head():
            raise SchemaOutOfDate(f"{name}: {_out_of_date(name, revision)}")
        return SqlStore(open_engines(url), policy)


def upgrade(url_or_path: str | Path | None = None) -> str:
    """Bring a store's tables to this program's version; returns that version.

    Raises:
        StoreError: If there is no store, or the migration fails; then nothing has changed.
    """
    url = resolve_url(url_or_path)
    name = safe_url(url)
    _require(not _is_missing(url), f"{name}: there is no store to upgrade")
    with one_line(name):
        revision, empty = _look(url)
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
        return _look(url)[0]


def head() -> str:
    """The version of the tables that this program works with."""
    revision = ScriptDirectory(str(_MIGRATIONS)).get_current_head()
    if revision is None:
        raise StoreError(f"{_MIGRATIONS} holds no migration: install the package again")
    return revision


def _known() -> set[str]:
    return {script.revision for script in ScriptDirectory(str(_MIGRATIONS)).walk_revisions()}


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


def _look(url: URL) -> tuple[str | None, bool]:
    """The schema's version, and whether the database has no tables at all."""
    engines = open_engines(url)
    try:
        with engines.read.connect() as connection:
            revision = MigrationContext.configure(connection).get_current_revision()
            return revision, not sa.inspect(connection).get_table_names()
    finally:
        engines.dispose()


def _migrate(url: URL) -> None:
    with migration_connection(url) as connection:
        command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
