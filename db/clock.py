"""The database's clock: the only clock of the store."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class db_now(FunctionElement[float]):
    """Now, in epoch seconds, as the database evaluates it."""

    type = sa.Double()
    inherit_cache = True


@compiles(db_now)
def _now_postgres(element: Any, compiler: Any, **kwargs: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(db_now, "sqlite")
def _now_sqlite(element: Any, compiler: Any, **kwargs: Any) -> str:
    # unixepoch('now', 'subsec') needs SQLite 3.42 and silently gives NULL before.
    return "((julianday('now') - 2440587.5) * 86400.0)"
