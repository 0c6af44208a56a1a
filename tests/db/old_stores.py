"""Stores as earlier versions of the program left them, with rows in every table.

python old_stores.py URL STATEMENT upgrades the store in a process that kills itself before the
statement of that number, or at COMMIT if it is -1.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

import sqlalchemy as sa
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext

from dllm_sweep.db.connect import resolve_url, upgrade
from dllm_sweep.db.engines import migration_connection

_UNIT = {"trial_id": 1, "generation": 0}
_EVENT = {"trial_id": 1, "at_s": 5.0, "actor": "planner", "reason": ""}
_TRIAL = {
    "sweep_id": 1,
    "label": "tiny rtn w4a16",
    "spec": {"model": "tiny"},
    "model": "tiny",
    "method": "rtn",
    "method_version": 1,
    "parameters": "{}",
    "scheme": "w4a16",
    "w_bits": 4,
    "a_bits": 16,
    "kv_bits": 16,
    "protocol_key": "p" * 64,
    "seed": 0,
    "is_baseline": False,
    "reason": "",
    "priority": 0,
    "estimated_s": 90.0,
    "generation": 0,
    "epoch": 1,
    "failures": 0,
    "losses": 0,
    "batch_scale": 1.0,
    "not_before_s": 0.0,
    "created_s": 1.0,
}
_ATTEMPT = {"epoch": 1, "pid": 7, "device": "cpu", "versions": {}, "batch_scale": 1.0}

FIRST = {
    "protocol": [{"key": "p" * 64, "spec": {"tasks": []}}],
    "sweep": [
        {
            "name": "old",
            "source": "name: old",
            "created_s": 1.0,
            "launched_s": 2.0,
            "paused": False,
            "epoch": 1,
        }
    ],
    "trial": [
        _TRIAL | {"trial_key": "a" * 64, "state": "SUCCEEDED", "attempt": 1},
        _TRIAL | {"trial_key": "b" * 64, "state": "FAILED", "attempt": 2},
        _TRIAL | {"trial_key": "c" * 64, "state": "PENDING", "attempt": 0},
    ],
    "attempt": [
        _ATTEMPT
        | {
            "trial_id": trial,
            "attempt": number,
            "claim_id": f"claim{trial}{number}",
            "host": f"host{number}",
            "started_s": 3.0,
            "ended_s": 4.0,
            "end_reason": reason,
        }
        for trial, number, reason in ((1, 1, "OK"), (2, 1, "LOST"), (2, 2, "ERROR"))
    ],
    "unit": [
        {
            "trial_id": trial,
            "generation": 0,
            "unit_key": key,
            "position": position,
            "kind": key.partition(":")[0],
            "task": key.partition(":")[2],
            "state": "DONE" if trial == 1 else "PENDING",
            "attempt": 1 if trial == 1 else None,
            "wall_s": 1.5 if trial == 1 else None,
            "done_s": 4.0 if trial == 1 else None,
            "warnings": [],
        }
        for trial in (1, 2, 3)
        for position, key in enumerate(("quantize", "evaluate:code", "evaluate:math"))
    ],
    "metric": [
        {
            **_UNIT,
            "unit_key": f"evaluate:{task}",
            "task": task,
            "name": "acc",
            "value": value,
            "value_flag": None if value is not None else "nan",
            "stderr": 0.01,
            "n": 30,
            "higher_is_better": True,
            "is_primary": True,
        }
        for task, value in (("code", 0.25), ("math", None))
    ],
    "module": [
        {
            **_UNIT,
            "unit_key": "quantize",
            "module": "blocks.0.q",
            "w_bits": 4,
            "a_bits": 16,
            "symmetric": False,
            "weights": 64,
            "bits": 272.0,
            "relative_error": 0.1,
        }
    ],
    "outlier": [
        {
            **_UNIT,
            "unit_key": "quantize",
            "module": "blocks.0.q",
            "mask_ratio": 0.5,
            "positions": "masked",
            "statistic": "channel_max",
            "rank": 0,
            "layer": 0,
            "element": 3,
            "value": 9.5,
            "value_flag": None,
        }
    ],
    "cost": [
        {**_UNIT, "unit_key": "quantize", "name": "average_bits", "value": 4.25, "unit": "bit"}
    ],
    "artifact": [
        {
            **_UNIT,
            "unit_key": "quantize",
            "kind": "weights",
            "path": "w.safetensors",
            "sha256": "d" * 64,
            "bytes": 10,
        }
    ],
    "failure": [
        {
            "trial_id": 2,
            "attempt": attempt,
            "error_type": "ValueError",
            "message": "wrong shape",
            "traceback": "Traceback",
            "fingerprint": "ValueError rtn.py:12",
            "unit": "quantize",
            "retryable": False,
            "log_tail": "",
        }
        for attempt in (1, 2)
    ],
    "event": [
        _EVENT | {"attempt": 0, "from_state": None, "to_state": "PENDING"},
        _EVENT | {"attempt": 1, "from_state": "PENDING", "to_state": "RUNNING"},
    ],
}
"""Rows of version 0001, parents before children; ids count from 1."""


def make_first(url: str) -> None:
    """Make a store of version 0001 with `FIRST` in it."""
    with migration_connection(resolve_url(url)) as connection:
        context = MigrationContext.configure(connection)
        with Operations.context(context):
            import_module("dllm_sweep.db.migrations.versions.0001_first").upgrade()
        connection.exec_driver_sql(
            "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"
        )
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('0001')")
        # Views of that version, in the way of whoever rebuilds their tables.
        for name, table in (("trials", "trial"), ("results", "metric"), ("failures", "failure")):
            connection.exec_driver_sql(f"CREATE VIEW {name} AS SELECT * FROM {table}")
        tables = sa.MetaData()
        tables.reflect(connection)
        for name, rows in FIRST.items():
            connection.execute(sa.insert(tables.tables[name]), rows)


def rows_of_first(url: str) -> dict[str, list]:
    """The rows of all tables of version 0001, with the columns that they had then."""
    engine = sa.create_engine(resolve_url(url))
    try:
        with engine.connect() as connection:
            return {
                name: sorted(connection.execute(_select(name, rows[0])).all(), key=repr)
                for name, rows in FIRST.items()
            }
    finally:
        engine.dispose()


def _select(name: str, row: dict) -> sa.Select:
    return sa.select(*(sa.column(column) for column in row)).select_from(sa.table(name))


def _upgrade_and_die(url: str, fatal: int) -> None:
    seen = 0

    def die(*event: object) -> None:
        nonlocal seen
        if seen == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    sa.event.listen(sa.Engine, "before_cursor_execute", die)
    if fatal == -1:
        sa.event.listen(sa.Engine, "commit", lambda connection: os.kill(os.getpid(), 9))
    upgrade(url)
    print(seen)


if __name__ == "__main__":
    _upgrade_and_die(sys.argv[1], int(sys.argv[2]))
