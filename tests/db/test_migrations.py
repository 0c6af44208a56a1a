"""Stores of earlier versions: refused with the command, upgraded with every row, never by half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dllm_sweep.db.connect import current, head, open_store, upgrade
from dllm_sweep.db.health import check
from dllm_sweep.errors import SchemaOutOfDate
from dllm_sweep.records import TrialState
from tests.db.old_stores import make_first, rows_of_first

SCRIPT = Path(__file__).with_name("old_stores.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def old_url(store_url):
    """A store of the first version, with rows in every table."""
    make_first(store_url)
    return store_url


def _upgrade_and_die(url: str, statement: int) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), url, str(statement)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_an_upgrade_keeps_every_row_of_the_first_version(old_url):
    before = rows_of_first(old_url)
    assert all(before.values())
    assert upgrade(old_url) == current(old_url) == head()
    assert rows_of_first(old_url) == before
    assert all(found.sound for found in check(old_url))


def test_an_upgraded_store_goes_on_where_the_old_one_was(old_url, build):
    upgrade(old_url)
    store = open_store(old_url)
    assert store.query("SELECT task, value FROM results ORDER BY task").rows == (
        ("code", 0.25),
        ("math", None),
    )
    lease = store.take_lease("old", build.holder, seconds=60)
    done, failed, pending = store.trials(lease.sweep_id)
    assert (done.state, done.units_done) == (TrialState.SUCCEEDED, 3)
    assert store.retry(lease.sweep_id, states=[TrialState.FAILED]) == 1
    units = store.units(lease.sweep_id)
    assert {unit.trial_id for unit in units} == {failed.id, pending.id}
    assert {unit.estimated_s for unit in units} == {30.0}
    assert {unit.unit.key for unit in units} == {"quantize", "evaluate:code", "evaluate:math"}
    store.close()


def test_an_older_store_is_refused_with_the_command_that_helps(old_url):
    from click.testing import CliRunner

    from dllm_sweep.cli import main

    with pytest.raises(SchemaOutOfDate, match="version 0001, this program needs") as refused:
        open_store(old_url)
    command = str(refused.value).partition("run: dllm-sweep ")[2].split()
    assert command[:3] == ["db", "upgrade", "--store"]
    # The password is not in the message: whoever has it knows how to give it.
    answer = CliRunner().invoke(main, [*command[:3], old_url])
    assert answer.exit_code == 0, answer.output
    open_store(old_url).close()


def test_an_upgrade_that_is_killed_half_way_leaves_the_old_store(old_url, tmp_path):
    before = rows_of_first(old_url)
    for statement in (1, 6, 14, 25, -1):
        died = _upgrade_and_die(old_url, statement)
        assert died.returncode == -signal.SIGKILL, (statement, died)
        assert current(old_url) == "0001"
        assert rows_of_first(old_url) == before
    done = _upgrade_and_die(old_url, 10**6)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 25, "the upgrade has fewer statements than are tried"
    assert rows_of_first(old_url) == before
    assert current(old_url) == head()


def test_a_check_finds_what_is_wrong_with_tables(sql_store, store_url):
    assert [(c.part, c.sound) for c in check(store_url)] == [
        ("version", True),
        ("tables", True),
        ("views", True),
        ("integrity", True),
        ("references", True),
    ]
    with sql_store._engines.write.begin() as connection:
        connection.exec_driver_sql("DROP VIEW progress")
        connection.exec_driver_sql("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
        connection.exec_driver_sql("DROP INDEX ix_event_trial_id")
    found = {c.part: c.found for c in check(store_url) if not c.sound}
    assert found["views"] == "progress is missing"
    assert "notes" in found["tables"]
    assert "ix_event_trial_id" in found["tables"]


def test_a_check_of_an_older_store_says_so(old_url):
    first, *others = check(old_url)
    assert (first.part, first.sound) == ("version", False)
    assert first.found == f"0001; this program needs {head()}"
    assert [c.part for c in others] == ["integrity", "references"]


def test_a_check_finds_rows_without_the_rows_they_refer_to(on_sqlite, sql_store, store_url, build):
    import sqlite3

    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    with sqlite3.connect(store_url.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM sweep")
    found = {c.part: c.found for c in check(store_url) if not c.sound}
    assert found == {"references": "row 1 of trial has no sweep"}


def test_a_check_finds_a_damaged_page(on_sqlite, sql_store, store_url, tmp_path, build):
    sql_store.plan_sweep("demo", "", build.planned(*(build.spec(seed=s) for s in range(50))))
    sql_store.close()
    path = tmp_path / "store.db"
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 4096 * 4096
    data[middle : middle + 100] = b"\x55" * 100
    path.write_bytes(data)
    assert [c.part for c in check(store_url) if not c.sound] == ["integrity"]
