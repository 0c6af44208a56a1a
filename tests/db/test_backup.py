"""Copies of a store in use: whole, never over something else, never half."""

from __future__ import annotations

import os
import subprocess

import pytest

from dllm_sweep.db import backup as backup_module
from dllm_sweep.db.backup import backup
from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import InputError, StoreError
from tests.postgres import binaries


@pytest.fixture
def filled(sql_store, build):
    """A store with one finished trial."""
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    build.run(sql_store, lease, sql_store.trials(sweep.id)[0])
    return sql_store


def _results(store):
    return store.query("SELECT * FROM results ORDER BY task, metric").rows


def test_a_copy_of_a_file_is_a_store_with_the_same_results(on_sqlite, filled, store_url, tmp_path):
    before = _results(filled)
    with filled._engines.write.begin() as connection:
        # A write in progress is not in the copy and does not hold it up.
        connection.exec_driver_sql("UPDATE sweep SET name = 'changed'")
        size = backup(store_url, tmp_path / "copy.db")
    assert size == (tmp_path / "copy.db").stat().st_size
    copy = open_store(tmp_path / "copy.db", create=False)
    assert _results(copy) == before
    assert copy.sweep(None).name == "demo"
    copy.close()


def test_an_archive_of_a_server_can_be_restored(postgres, build, tmp_path):
    with postgres.database() as url, postgres.database() as other:
        store = open_store(url)
        sweep = store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
        build.run(
            store,
            store.take_lease("demo", build.holder, seconds=60),
            store.trials(sweep.id)[0],
        )
        backup(url, tmp_path / "copy.dump")
        assert postgres.password.encode() not in (tmp_path / "copy.dump").read_bytes()
        restore = [binaries() / "pg_restore", "--no-owner", "--dbname", other]
        subprocess.run([*restore, tmp_path / "copy.dump"], check=True)
        copy = open_store(other, create=False)
        assert _results(copy) == _results(store)
        copy.close()
        store.close()


def test_nothing_is_written_over(filled, store_url, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        backup(store_url, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_folder_that_is_missing_is_named(filled, store_url, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        backup(store_url, tmp_path / "no" / "copy")


def test_a_copy_that_fails_leaves_nothing_behind(filled, store_url, tmp_path, monkeypatch):
    def fail(url, part):
        part.write_text("half")
        raise StoreError("the disk is full")

    monkeypatch.setattr(backup_module, "_copy_sqlite", fail)
    monkeypatch.setattr(backup_module, "_dump_postgres", fail)
    before = set(os.listdir(tmp_path))
    with pytest.raises(StoreError, match="disk is full"):
        backup(store_url, tmp_path / "copy")
    assert set(os.listdir(tmp_path)) == before


def test_a_missing_pg_dump_is_said_with_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(backup_module, "_SERVER_FOLDERS", tmp_path)
    with pytest.raises(StoreError, match="apt-get install postgresql-client"):
        backup_module._pg_dump()


def test_what_is_no_store_is_not_copied(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        backup(tmp_path / "none.db", tmp_path / "copy.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(StoreError, match="nothing to copy"):
        backup(tmp_path / "empty.db", tmp_path / "copy.db")
