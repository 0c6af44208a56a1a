"""Servers that restart, links that break, files that are locked: told apart, and nothing lost."""

from __future__ import annotations

import pickle
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from dllm_sweep.db import engines, faults
from dllm_sweep.db.connect import open_store
from dllm_sweep.db.patience import patient
from dllm_sweep.errors import Fenced, StoreError, StoreUnavailable
from dllm_sweep.records import TrialState
from tests.postgres import Proxy, running


@pytest.fixture(scope="module")
def server():
    """A server of this file's own, which its tests stop and start."""
    with running() as own:
        yield own


@pytest.fixture
def address(server):
    with server.database() as url:
        yield url


@pytest.fixture
def link(server):
    proxy = Proxy(server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def through_link(server, link, address):
    """A store behind a link that can be cut."""
    store = open_store(sa.make_url(address).set(port=link.port).render_as_string(False))
    yield store
    store.close()


@pytest.fixture
def plan(build):
    """Plans one trial in a store and claims it."""

    def plan(store, sweep="demo"):
        row = store.plan_sweep(sweep, "", build.planned(build.spec("rtn")))
        lease = store.take_lease(sweep, build.holder, seconds=60)
        return store.claim(lease, store.trials(row.id)[0].id, "c", build.host)

    return plan


def test_a_stopped_server_is_unavailable_and_waited_for(server, address, build, plan):
    store = open_store(address)
    claim, told = plan(store), []
    server.stop()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        store.sweep("demo")
    waiting = patient(store, tell=told.append)
    back = threading.Timer(1.0, server.start)
    back.start()
    unit = claim.trial.units()[0]
    assert waiting.commit_unit(claim, build.result(unit)) is TrialState.RUNNING
    back.join()
    assert len(told) == 2
    assert store.trials(1)[0].units_done == 1
    store.close()


def test_a_crashed_server_keeps_what_was_committed(server, address, build, plan):
    store = open_store(address)
    claim = plan(store)
    first, second, *_ = claim.trial.units()
    store.commit_unit(claim, build.result(first))
    server.stop(signal.SIGQUIT)
    server.start()
    waiting = patient(store)
    waiting.commit_unit(claim, build.result(second))
    assert store.trials(1)[0].units_done == 2
    store.close()


def test_a_connection_that_the_server_ends_is_made_again(server, address, plan):
    store = open_store(address)
    plan(store)
    server.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'dllm-sweep/%'"
    )
    assert store.sweep("demo").name == "demo"
    store.pause(1, True)
    store.close()


@pytest.mark.parametrize("where", ["cut_after_commit", "cut_before_commit"])
def test_a_link_cut_at_commit_leaves_the_unit_once(through_link, link, build, plan, where):
    store = through_link
    claim = plan(store)
    for unit in claim.trial.units():
        getattr(link, where)()
        state = store.commit_unit(claim, build.result(unit))
    assert link.cuts == len(claim.trial.units())
    assert state is TrialState.SUCCEEDED
    assert len(store.query("SELECT DISTINCT task, metric FROM results").rows) == 4
    assert len(store.query("SELECT task, metric FROM results").rows) == 4
    assert store.query("SELECT DISTINCT attempt FROM unit").rows == ((1,),)


@pytest.mark.parametrize("where", ["cut_after_commit", "cut_before_commit"])
def test_a_link_cut_while_an_attempt_ends_charges_it_once(through_link, link, build, plan, where):
    claim = plan(through_link)
    getattr(link, where)()
    failure = build.failure(retryable=True)
    assert through_link.end_attempt(claim, failure) is TrialState.PENDING
    assert link.cuts == 1
    assert through_link.query("SELECT attempt, failures FROM trial").rows == ((1, 1),)
    assert through_link.query("SELECT COUNT(*) FROM failure").rows == ((1,),)


@pytest.mark.parametrize("where", ["cut_after_commit", "cut_before_commit"])
def test_a_link_cut_while_claiming_makes_one_attempt(through_link, link, build, where):
    row = through_link.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = through_link.take_lease("demo", build.holder, seconds=60)
    trial = through_link.trials(row.id)[0]
    getattr(link, where)()
    claim = through_link.claim(lease, trial.id, "c", build.host)
    assert (link.cuts, claim.attempt) == (1, 1)
    assert through_link.query("SELECT COUNT(*) FROM attempt").rows == ((1,),)


def test_who_lost_its_trial_behind_a_cut_link_is_fenced(through_link, link, build, plan):
    claim = plan(through_link)
    link.cut_before_commit()
    other = open_store(through_link._engines.url.set(port=link._target).render_as_string(False))
    other.cancel(1)
    with pytest.raises(Fenced):
        through_link.commit_unit(claim, build.result(claim.trial.units()[0]))
    other.close()


def test_a_server_without_room_for_one_more_client_is_unavailable(server):
    server.execute("ALTER ROLE sweeper CONNECTION LIMIT -1")
    server.execute("CREATE ROLE small LOGIN PASSWORD 'small' CONNECTION LIMIT 0")
    url = sa.make_url(server.url()).set(username="small", password="small")
    with pytest.raises(StoreUnavailable, match=r"too many connections|no connection left"):
        open_store(url.render_as_string(False))
    server.execute("DROP ROLE small")


def test_a_wrong_password_or_database_is_no_outage(server):
    wrong = sa.make_url(server.url()).set(password="wrong").render_as_string(False)
    for address, words in (
        (wrong, "refuses the user or the password"),
        (server.url("nowhere"), "does not exist"),
    ):
        with pytest.raises(StoreError, match=words) as error:
            open_store(address)
        assert not isinstance(error.value, StoreUnavailable)


def test_a_trial_that_another_client_holds_for_too_long_is_unavailable(
    server, address, build, plan, monkeypatch
):
    monkeypatch.setitem(engines._WRITING, "lock_timeout", 200)
    store = open_store(address)
    claim = plan(store)
    with store._engines.read.connect() as other:
        other.exec_driver_sql("COMMIT")
        other.exec_driver_sql("BEGIN READ WRITE")
        other.exec_driver_sql("SELECT * FROM trial FOR UPDATE")
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.commit_unit(claim, build.result(claim.trial.units()[0]))
    store.commit_unit(claim, build.result(claim.trial.units()[0]))
    store.close()


def test_a_takeover_and_a_commit_do_not_wait_for_each_other(address, build, plan, monkeypatch):
    """A second UPDATE of a trial in one transaction makes Postgres look up its sweep again."""
    monkeypatch.setattr("dllm_sweep.db.transaction.is_cut_short", lambda error: False)
    store = open_store(address)
    claim = plan(store)
    beat, refer = (
        f"UPDATE trial SET {column} = {column} WHERE id = {claim.trial_id}"
        for column in ("beat_s", "reason")
    )
    with ThreadPoolExecutor(1) as pool, store._engines.read.connect() as other:
        other.exec_driver_sql("COMMIT")
        other.exec_driver_sql("BEGIN READ WRITE")
        other.exec_driver_sql(beat)
        taken = pool.submit(store.take_lease, "demo", build.other, seconds=60, takeover=True)
        _wait_for_a_waiter(store)
        other.exec_driver_sql(refer)
        other.exec_driver_sql("COMMIT")
        assert taken.result(30).epoch == 2
    store.close()


def _wait_for_a_waiter(store):
    deadline_s = time.monotonic() + 30
    waiting = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted"
    while store.query(waiting).rows == ((0,),):
        assert time.monotonic() < deadline_s


def test_connections_say_who_they_are_and_have_limits(address):
    store = open_store(address)
    for engine, role, limit in (("write", "write", "1min"), ("read", "read", "5min")):
        with getattr(store._engines, engine).connect() as connection:
            shown = [
                connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in ("application_name", "statement_timeout", "lock_timeout")
            ]
        assert shown == [f"dllm-sweep/{role}", limit, "10s"]
    store.close()


def test_what_the_address_says_goes_before_our_limits(address):
    store = open_store(f"{address}?application_name=mine&options=-c%20lock_timeout%3D7s")
    with store._engines.write.connect() as connection:
        assert connection.exec_driver_sql("SHOW application_name").scalar() == "mine"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "7s"
    store.close()


def test_a_file_that_stays_locked_is_unavailable(tmp_path, monkeypatch, build):
    monkeypatch.setattr(engines, "BUSY_TIMEOUT_MS", 100)
    monkeypatch.setattr(engines, "_PRAGMAS_WRITE", ("busy_timeout = 100", "journal_mode = WAL"))
    store = open_store(tmp_path / "store.db")
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="is locked by another process"):
        store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    other.execute("ROLLBACK")
    other.close()
    store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    store.close()


def test_a_store_sent_to_another_process_opens_its_own_connections(sql_store, build):
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    sent = pickle.loads(pickle.dumps(sql_store))
    assert sent._engines.write is not sql_store._engines.write
    assert sent.sweep("demo") == sql_store.sweep("demo")
    assert sent.url == sql_store.url
    sent.close()


def test_every_reason_to_wait_is_spelled_as_the_databases_spell_it():
    """Texts as psycopg 3 and sqlite3 give them; codes where the server could still give one."""
    for text, code, passes in (
        ("connection failed: FATAL:  the database system is starting up", None, True),
        ("connection failed: FATAL:  the database system is in recovery mode", None, True),
        ("connection failed: FATAL:  sorry, too many clients already", None, True),
        ("consuming input failed: server closed the connection unexpectedly", None, True),
        ("terminating connection due to administrator command", "57P01", True),
        ("deadlock detected", "40P01", True),
        ("database is locked", None, True),
        ("could not extend file: No space left on device", "53100", False),
        ("database or disk is full", None, False),
        ("duplicate key value violates unique constraint", "23505", False),
        ("password authentication failed for user", None, False),
        ("no such table: trial", None, False),
    ):
        original = sqlite3.OperationalError(text)
        original.sqlstate = code
        error = sa.exc.DBAPIError("SELECT 1", None, original)
        assert faults.may_pass(error) is passes, text
