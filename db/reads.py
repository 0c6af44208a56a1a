"""Reading for people: one trial in full, the leaderboard, progress, any SELECT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from dllm_sweep.db.engines import Engines, explain, one_line
from dllm_sweep.db.schema import (
    ArtifactRow,
    Attempt,
    CostRow,
    FailureRow,
    MetricRow,
    ModuleTable,
    Sweep,
    Trial,
    UnitRow,
)
from dllm_sweep.errors import InputError
from dllm_sweep.spec import TrialSpec, from_json

if TYPE_CHECKING:
    import pyarrow

_COMMENTS = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_READING = ("select", "with", "values", "explain")


@dataclass(frozen=True)
class Table:
    """What a query gave.

    Attributes:
        columns: Names of the columns.
        rows: One tuple of plain values for each row.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def dicts(self) -> list[dict[str, Any]]:
        """The rows as dictionaries by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]

    def to_arrow(self) -> pyarrow.Table:
        """The same table for Arrow and all that reads it."""
        import pyarrow

        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.columns)
        return pyarrow.table(
            {name: list(values) for name, values in zip(self.columns, columns, strict=True)}
        )


@dataclass(frozen=True, kw_only=True)
class TrialDetail:
    """Everything the store knows about one trial; the tables hold its current results only.

    Attributes:
        trial: Its row of the view `trials`, by column name.
        spec: What it is.
        units: Its units with state, attempt and seconds.
        attempts: All attempts with host, device, end and log.
        metrics: All scores.
        costs: All measured costs.
        modules: How many linear layers were quantized to which bits and grids, with the mean and
            greatest relative error of their weights.
        failures: Every failed attempt with its traceback.
        artifacts: Files beside the store.
        log_path: The latest attempt's log; None if it has none.
    """

    trial: dict[str, Any]
    spec: TrialSpec
    units: Table
    attempts: Table
    metrics: Table
    costs: Table
    modules: Table
    failures: Table
    artifacts: Table
    log_path: str | None


def query(engines: Engines, sql: str, params: Sequence[object] = ()) -> Table:
    """Run one reading statement on a connection that cannot write; `?` stands for each param.

    Raises:
        InputError: If it is another kind of statement, or the database does not accept it.
    """
    refuse_writes(sql)
    text = sql if engines.read.dialect.name == "sqlite" else _for_postgres(sql)
    try:
        with engines.read.begin() as connection:
            result = connection.exec_driver_sql(text, tuple(params) or None)
            # Nothing is converted in a statement that is text; the driver's own rows come faster.
            return Table(tuple(result.keys()), tuple(result.cursor.fetchall()))
    except DBAPIError as error:
        raise InputError(f"the query failed: {explain(error)}") from error


def refuse_writes(sql: str) -> None:
    """Refuse what is not one reading statement; the connection refuses what slips through.

    Raises:
        InputError: If it does not begin with SELECT, WITH, VALUES or EXPLAIN.
    """
    words = _COMMENTS.sub(" ", sql).strip().lower().split(None, 1)
    if not words or not words[0].startswith(_READING):
        raise InputError("only reading is allowed: write one SELECT, WITH, VALUES or EXPLAIN")


def leaderboard(engines: Engines, sweep: str | None = None) -> Table:
    """The view `leaderboard` of one sweep or of all, best first within protocol and model."""
    order = "sweep, protocol_key, model, CASE WHEN place IS NULL THEN 1 ELSE 0 END, place, label"
    return _view(engines, "leaderboard", sweep, order)


def progress(engines: Engines, sweep: str | None = None) -> Table:
    """The view `progress` of one sweep or of all."""
    return _view(engines, "progress", sweep, "sweep")


def trial_detail(engines: Engines, key_prefix: str, sweep: str | None = None) -> TrialDetail:
    """Everything about the one trial whose key starts so.

    Raises:
        InputError: If no trial or several have such a key.
    """
    with one_line(engines.name), engines.read.begin() as connection:
        trial = _find(connection, key_prefix, sweep)
        shown = connection.exec_driver_sql(*_one_trial(connection, trial)).one()
        attempts = _rows(connection, Attempt, Attempt.trial_id == trial.id, Attempt.attempt)
        log = attempts.columns.index("log_path")
        return TrialDetail(
            trial=dict(shown._mapping),
            spec=from_json(TrialSpec, trial.spec),
            units=_rows(connection, UnitRow, _of(UnitRow, trial), UnitRow.position),
            attempts=attempts,
            metrics=_rows(connection, MetricRow, _of(MetricRow, trial), MetricRow.task),
            costs=_rows(connection, CostRow, _of(CostRow, trial), CostRow.name),
            modules=_modules(connection, trial),
            failures=_rows(
                connection, FailureRow, FailureRow.trial_id == trial.id, FailureRow.attempt
            ),
            artifacts=_rows(connection, ArtifactRow, _of(ArtifactRow, trial), ArtifactRow.path),
            log_path=attempts.rows[-1][log] if attempts.rows else None,
        )


def _find(connection: Connection, key_prefix: str, sweep: str | None) -> Any:
    matches = (
        sa.select(Trial.id, Trial.trial_key, Trial.generation, Trial.spec, Sweep.name)
        .join(Sweep, Sweep.id == Trial.sweep_id)
        .where(Trial.trial_key.startswith(key_prefix, autoescape=True))
        .order_by(Sweep.launched_s.desc(), Trial.id)
    )
    if sweep is not None:
        matches = matches.where(Sweep.name == sweep)
    rows = connection.execute(matches).all()
    if not rows:
        raise InputError(f"no trial has a key that starts with {key_prefix!r}")
    keys = sorted({row.trial_key for row in rows})
    if len(keys) > 1:
        listed = ", ".join(key[:12] for key in keys[:5])
        raise InputError(f"{len(keys)} trials have a key that starts with {key_prefix!r}: {listed}")
    return rows[0]


def _one_trial(connection: Connection, trial: Any) -> tuple[str, tuple[str, str]]:
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    sql = f"SELECT * FROM trials WHERE trial_key = {mark} AND sweep = {mark}"
    return sql, (trial.trial_key, trial.name)


def _of(table: type[Any], trial: Any) -> sa.ColumnElement[bool]:
    return sa.and_(table.trial_id == trial.id, table.generation == trial.generation)


def _rows(connection: Connection, table: type[Any], where: Any, order: Any) -> Table:
    hidden = ("trial_id", "generation", "claim_id", "epoch")
    columns = [column for column in table.__table__.c if column.name not in hidden]
    return _table(connection.execute(sa.select(*columns).where(where).order_by(order)))


def _modules(connection: Connection, trial: Any) -> Table:
    grid = (
        ModuleTable.w_bits,
        ModuleTable.a_bits,
        ModuleTable.group_size,
        ModuleTable.symmetric,
    )
    query = (
        sa.select(
            *grid,
            sa.func.count().label("modules"),
            sa.func.sum(ModuleTable.weights).label("weights"),
            sa.func.avg(ModuleTable.relative_error).label("mean_relative_error"),
            sa.func.max(ModuleTable.relative_error).label("max_relative_error"),
        )
        .where(_of(ModuleTable, trial))
        .group_by(*grid)
        .order_by(*grid)
    )
    return _table(connection.execute(query))


def _view(engines: Engines, name: str, sweep: str | None, order: str) -> Table:
    where, params = ("", ()) if sweep is None else ("WHERE sweep = ?", (sweep,))
    return query(engines, f"SELECT * FROM {name} {where} ORDER BY {order}", params)


def _for_postgres(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


def _table(result: Any) -> Table:
    return Table(tuple(result.keys()), tuple(tuple(row) for row in result))
