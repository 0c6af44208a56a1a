"""The clock of the database or of a worker is set: leases and fences go on as they should."""

from __future__ import annotations

import time

import pytest
import sqlalchemy as sa

from dllm_sweep.db.clock import db_now
from dllm_sweep.errors import Fenced, LeaseHeld
from dllm_sweep.process import take_lease
from dllm_sweep.records import Holder, TrialState
from tests.db.clocks import PostgresClock, SqliteClock

HOUR_S = 3600.0
DEAD = Holder(host="a-machine-that-is-gone", pid=7, process_started_s=1.0)


class Own:
    """This process's own clock: passes by sleeping; something may happen meanwhile."""

    def __init__(self, meanwhile=lambda now_s: None):
        self.now_s, self.meanwhile = 0.0, meanwhile

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds
        self.meanwhile(self.now_s)


@pytest.fixture
def clock(sql_store, build):
    """A clock of the database that can be set."""
    sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn"), build.spec("gptq")))
    name = sql_store._engines.write.dialect.name
    return {"sqlite": SqliteClock, "postgresql": PostgresClock}[name](sql_store)


def _take(store, build, own, told=None):
    return take_lease(
        store,
        "demo",
        build.holder,
        seconds=60,
        clock=own,
        sleep=own.sleep,
        tell=(told if told is not None else []).append,
    )


def test_the_clock_of_the_test_can_be_set(sql_store, clock):
    with sql_store._engines.read.connect() as connection:
        assert abs(connection.scalar(sa.select(db_now())) - time.time()) < 5
        connection.rollback()
        clock.step(-HOUR_S)
        assert abs(connection.scalar(sa.select(db_now())) + HOUR_S - time.time()) < 5


def test_a_dead_controllers_lease_is_not_waited_for_longer_after_a_step_back(
    sql_store, clock, build
):
    sql_store.take_lease("demo", DEAD, seconds=60)
    clock.step(-HOUR_S)
    own, told = Own(), []
    assert _take(sql_store, build, own, told).epoch == 2
    assert 60 <= own.now_s < 65
    assert told == ["process 7 on a-machine-that-is-gone has 'demo': seeing if it still lives"]


def test_a_controller_that_renews_on_another_machine_is_seen_to_live(sql_store, clock, build):
    lease = sql_store.take_lease("demo", DEAD, seconds=60)
    clock.step(-HOUR_S)
    own = Own(lambda now_s: sql_store.renew_lease(lease, seconds=60) if now_s == 10 else None)
    with pytest.raises(LeaseHeld, match="a-machine-that-is-gone"):
        _take(sql_store, build, own)
    assert own.now_s == 10


def test_a_dead_controllers_lease_is_taken_when_it_runs_out(sql_store, clock, build):
    sql_store.take_lease("demo", DEAD, seconds=60)
    own = Own(lambda now_s: clock.step(1.0))
    assert _take(sql_store, build, own).epoch == 2
    assert 55 <= own.now_s <= 61


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_step_ends_no_attempt_and_a_renewal_puts_the_lease_right(sql_store, clock, build, step_s):
    lease = sql_store.take_lease("demo", DEAD, seconds=60)
    trial = sql_store.trials(lease.sweep_id)[0]
    claim = sql_store.claim(lease, trial.id, "c", build.host)
    clock.step(step_s)
    sql_store.renew_lease(lease, seconds=60)
    with pytest.raises(LeaseHeld) as held:
        sql_store.take_lease("demo", build.holder, seconds=60)
    assert 50 < held.value.expires_in_s <= 60
    for unit in claim.trial.units():
        state = sql_store.commit_unit(claim, build.result(unit))
    assert state is TrialState.SUCCEEDED


def test_whoever_was_taken_over_after_a_step_is_fenced(sql_store, clock, build):
    old = sql_store.take_lease("demo", DEAD, seconds=60)
    trial = sql_store.trials(old.sweep_id)[0]
    claim = sql_store.claim(old, trial.id, "c", build.host)
    clock.step(HOUR_S)
    new = sql_store.take_lease("demo", build.holder, seconds=60)
    assert new.epoch == old.epoch + 1
    with pytest.raises(Fenced):
        sql_store.renew_lease(old, seconds=60)
    with pytest.raises(Fenced):
        sql_store.commit_unit(claim, build.result(claim.trial.units()[0]))
    assert sql_store.trials(old.sweep_id)[0].state is TrialState.PENDING


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S])
def test_a_workers_own_clock_means_nothing(sql_store, build, monkeypatch, step_s):
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step_s)
    build.run(sql_store, lease, sql_store.trials(sweep.id)[0])
    monkeypatch.undo()
    times = sql_store.query("SELECT started_s, finished_s FROM trial").rows[0]
    assert all(abs(seconds - time.time()) < 30 for seconds in times)
