"""A process that dies in the middle of a commit leaves all of it or nothing of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

from dllm_sweep.records import TrialState
from dllm_sweep.spec import Unit

SCRIPT = Path(__file__).with_name("crash.py")
TABLES = ("unit", "metric", "outlier", "module", "cost", "artifact", "attempt", "event", "trial")
DIED, FINISHED = 75, 0


def _commit_and_die(url: str, claim, result, statement: int) -> int:
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, str(SCRIPT), url, str(statement)],
        input=pickle.dumps((claim, result)),
        env={**os.environ, "PYTHONPATH": root},
        check=False,
    )
    return process.returncode


def _rows(store):
    return [store.query(f"SELECT * FROM {table}").rows for table in TABLES]


def test_a_commit_that_dies_at_any_statement_leaves_nothing(on_sqlite, sql_store, store_url, build):
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    claim = sql_store.claim(lease, sql_store.trials(sweep.id)[0].id, "c", build.host)
    *units, last = claim.trial.units()
    for unit in units:
        sql_store.commit_unit(claim, build.result(unit))
    result, before, statement = build.result(last), _rows(sql_store), 0
    while (code := _commit_and_die(store_url, claim, result, statement)) == DIED:
        assert _rows(sql_store) == before
        statement += 1
    assert code == FINISHED
    assert statement >= 8, "the commit has fewer statements than it needs"
    assert sql_store.trials(sweep.id)[0].state is TrialState.SUCCEEDED
    assert sql_store.commit_unit(claim, result) is TrialState.SUCCEEDED
    assert sql_store.commit_unit(claim, build.result(Unit(kind="quantize"))) is (
        TrialState.SUCCEEDED
    )
