"""Opening stores: what is made, what is refused, and in which words."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from dllm_sweep.db import connect
from dllm_sweep.db.connect import current, head, open_store, resolve_url, safe_url, upgrade
from dllm_sweep.db.engines import migration_connection, open_engines
from dllm_sweep.db.schema import Base
from dllm_sweep.db.views import drop_views
from dllm_sweep.errors import InputError, SchemaOutOfDate, StoreError
from dllm_sweep.spec import Unit


def _set_revision(url: str, revision: str) -> None:
    with migration_connection(resolve_url(url)) as connection:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")


def test_the_migrated_tables_are_those_of_the_schema(sql_store, store_url):
    engines = open_engines(resolve_url(store_url))
    with engines.read.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engines.dispose()


def test_the_program_works_with_the_last_migration():
    scripts = ScriptDirectory(str(Path(connect.__file__).with_name("migrations")))
    assert head() == scripts.get_current_head()
    assert {script.revision for script in scripts.walk_revisions()} == connect._known()


def test_the_migrated_checks_are_those_of_the_schema(on_sqlite, sql_store, store_url):
    made = sa.create_engine("sqlite://")
    Base.metadata.create_all(made)
    migrated = open_engines(resolve_url(store_url))
    for table in Base.metadata.tables:
        found = [
            sorted((c["name"], c["sqltext"]) for c in sa.inspect(e).get_check_constraints(table))
            for e in (made, migrated.read)
        ]
        assert found[0] == found[1]
    migrated.dispose()


def test_upgrading_keeps_every_row(sql_store, store_url, build):
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    build.run(sql_store, lease, sql_store.trials(sweep.id)[0])
    tables = sorted(Base.metadata.tables)
    before = {name: sql_store.query(f"SELECT * FROM {name}").rows for name in tables}
    assert upgrade(store_url) == current(store_url) == head()
    after = {name: sql_store.query(f"SELECT * FROM {name}").rows for name in tables}
    assert after == before
    assert sql_store.leaderboard_rows().rows


def test_tables_may_be_rebuilt_while_views_are_down(sql_store, store_url):
    with migration_connection(resolve_url(store_url)) as connection:
        drop_views(connection)
        assert not [name for name in sa.inspect(connection).get_view_names() if name == "results"]
    upgrade(store_url)
    assert sql_store.query("SELECT * FROM results").rows == ()


def test_a_store_of_an_unknown_version_is_refused(sql_store, store_url):
    _set_revision(store_url, "9999")
    with pytest.raises(SchemaOutOfDate, match=r"version 9999.*pip install --upgrade"):
        open_store(store_url)
    with pytest.raises(StoreError, match="does not know"):
        upgrade(store_url)


def test_a_store_of_an_older_version_is_refused_with_the_command(
    on_sqlite, sql_store, store_url, monkeypatch
):
    monkeypatch.setattr("dllm_sweep.db.connect.head", lambda: "9999")
    command = f"dllm-sweep db upgrade --store {store_url}"
    with pytest.raises(SchemaOutOfDate, match=command):
        open_store(store_url)


def test_a_migration_that_breaks_a_reference_changes_nothing(
    on_sqlite, sql_store, store_url, build
):
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    with (
        pytest.raises(StoreError, match="without their row of sweep"),
        migration_connection(resolve_url(store_url)) as connection,
    ):
        connection.exec_driver_sql("DELETE FROM sweep")
    assert sql_store.sweep("demo").name == "demo"


def test_many_processes_may_open_a_new_store_at_once(on_sqlite, store_url):
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(lambda _: open_store(store_url), range(4)))
    assert {store.query("SELECT COUNT(*) FROM degradation_class").rows for store in stores} == {
        ((3,),)
    }
    for store in stores:
        store.close()


def test_a_plain_path_and_the_environment_name_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    open_store("plain.db").close()
    monkeypatch.setenv("DLLM_SWEEP_STORE", f"sqlite:///{tmp_path}/named.db")
    open_store().close()
    monkeypatch.delenv("DLLM_SWEEP_STORE")
    open_store().close()
    names = {path.name for path in tmp_path.glob("*.db")}
    assert names == {"plain.db", "named.db", "dllm-sweep.db"}


def test_a_missing_store_is_not_made_when_only_reading(tmp_path):
    with pytest.raises(StoreError, match="there is no store; `dllm-sweep launch` makes one"):
        open_store(tmp_path / "none.db", create=False)
    assert not list(tmp_path.iterdir())


def test_an_empty_file_is_filled_only_when_asked(tmp_path):
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(StoreError, match="the database is empty"):
        open_store(path, create=False)
    open_store(path).close()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StoreError, match="check that the folder exists"):
        open_store(tmp_path / "no" / "store.db")


def test_a_file_that_is_no_database_is_left_alone(tmp_path):
    path = tmp_path / "notes.db"
    path.write_text("these are my notes " * 100)
    with pytest.raises(StoreError, match="not a store") as error:
        open_store(path)
    assert "\n" not in str(error.value)
    assert path.read_text().startswith("these are my notes")


def test_a_database_of_something_else_is_left_alone(tmp_path):
    path = tmp_path / "music.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    for call in (open_store, upgrade):
        with pytest.raises(StoreError, match="not a store"):
            call(path)


def test_a_damaged_file_is_called_so(on_sqlite, store_url, tmp_path):
    open_store(store_url).close()
    path = tmp_path / "store.db"
    os.truncate(path, 5000)
    with pytest.raises(StoreError, match="damaged"):
        open_store(store_url).trials(1)


@pytest.mark.parametrize("address", ["mysql://host/x", "sqlite://", "http:///x", "a://b:c:d"])
def test_an_address_of_another_form_is_refused(address):
    with pytest.raises(StoreError, match="not a store's address"):
        open_store(address)


def test_a_password_is_never_shown():
    assert safe_url("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    with pytest.raises(StoreError) as error:
        open_store("postgresql://me:secret@127.0.0.1:1/db")
    assert "does not answer" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_full_disk_is_said_and_loses_nothing(on_sqlite, sql_store, build):
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    claim = sql_store.claim(lease, sql_store.trials(sweep.id)[0].id, "c", build.host)
    writer = sql_store._engines.write
    with writer.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
    many = [build.spec("rtn", seed=seed) for seed in range(300)]
    with pytest.raises(StoreError, match="the disk is full"):
        sql_store.plan_sweep("demo", "", build.planned(*many))
    with writer.begin() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert len(sql_store.trials(sweep.id)) == 1
    sql_store.commit_unit(claim, build.result(Unit(kind="quantize")))


def test_a_reader_does_not_wait_for_a_writer(on_sqlite, sql_store, build):
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    with sql_store._engines.write.begin() as connection:
        connection.exec_driver_sql("UPDATE sweep SET name = 'changed'")
        assert sql_store.sweep(None).name == "demo"


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM sweep",
        "UPDATE trial SET state = 'SUCCEEDED'",
        "PRAGMA query_only = OFF",
        "DROP VIEW results",
        "ATTACH DATABASE 'x.db' AS x",
        "",
        "-- only a comment",
    ],
)
def test_a_statement_that_does_not_read_is_refused(sql_store, statement):
    with pytest.raises(InputError, match="only reading is allowed"):
        sql_store.query(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "WITH x AS (SELECT 1) DELETE FROM sweep",
        "WITH x AS (SELECT 1) INSERT INTO degradation_class SELECT 'a', 1, 1, 1, 1 FROM x",
        "SELECT 1; DELETE FROM sweep",
        "SELECT nothing FROM nowhere",
        "SELECT 'unfinished",
    ],
)
def test_what_slips_through_is_refused_by_the_database(sql_store, build, statement):
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    with pytest.raises(InputError, match="the query failed"):
        sql_store.query(statement)
    assert sql_store.sweep("demo").name == "demo"
    assert sql_store.query("SELECT COUNT(*) FROM degradation_class").rows == ((3,),)


def test_a_comment_may_stand_before_a_query(sql_store):
    assert sql_store.query("-- one\n/* two */ SELECT ? + 1 AS n", [1]).dicts() == [{"n": 2}]


def test_the_start_of_a_key_must_name_one_trial(sql_store, build):
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn"), build.spec("gptq")))
    with pytest.raises(InputError, match="no trial has a key that starts with 'xyz'"):
        sql_store.trial_detail("xyz")
    with pytest.raises(InputError, match="2 trials have a key"):
        sql_store.trial_detail("")
