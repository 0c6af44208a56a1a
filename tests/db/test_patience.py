"""A patient store waits for its database, says so once, and gives up when it is told to."""

from __future__ import annotations

import pickle

import pytest

from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.db.patience import Patient, patient
from dllm_sweep.errors import Fenced, StoreError, StoreUnavailable, UnknownName


class Flaky:
    """A store that does not answer the first `faults` calls."""

    def __init__(self, faults, error=StoreUnavailable):
        self.faults, self.calls, self.error = faults, 0, error

    def pause(self, sweep_id, paused):
        self.calls += 1
        if self.calls <= self.faults:
            raise self.error("the server does not answer")
        return sweep_id, paused


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self):
        self.now_s, self.naps = 0.0, []

    def __call__(self):
        return self.now_s

    def sleep(self, seconds):
        self.naps.append(seconds)
        self.now_s += seconds


@pytest.fixture
def clock():
    return Clock()


def _patient(store, clock, **options):
    return Patient(store, clock=clock, sleep=clock.sleep, **options)


def test_a_call_is_repeated_until_the_store_answers(clock):
    told, flaky = [], Flaky(5)
    assert _patient(flaky, clock, tell=told.append).pause(7, True) == (7, True)
    assert flaky.calls == 6
    begin, end = told
    assert begin == "the server does not answer; waiting for it for up to 10 min"
    assert end.startswith("the store answers again after")


def test_nothing_is_said_or_waited_for_when_all_is_well(clock):
    told = []
    _patient(Flaky(0), clock, tell=told.append).pause(7, True)
    assert (told, clock.naps) == ([], [])


def test_the_pauses_grow_but_stay_short_enough_to_notice_the_server(clock):
    flaky = Flaky(10**9)
    with pytest.raises(StoreUnavailable, match="does not answer"):
        _patient(flaky, clock, patience_s=600.0).pause(1, False)
    assert 600 <= clock.now_s <= 620
    assert 40 <= flaky.calls <= 100


def test_two_that_lose_the_store_together_do_not_come_back_together():
    ends = set()
    for _ in range(5):
        clock = Clock()
        _patient(Flaky(6), clock).pause(1, True)
        ends.add(clock.now_s)
    assert len(ends) == 5


def test_waiting_ends_when_the_user_stops_the_run(clock):
    with pytest.raises(StoreUnavailable):
        _patient(Flaky(10**9), clock, stop=lambda: clock.now_s > 20).pause(1, True)
    assert clock.now_s < 22


@pytest.mark.parametrize("error", [StoreError, Fenced])
def test_what_does_not_pass_is_not_waited_for(clock, error):
    flaky = Flaky(1, error)
    with pytest.raises(error):
        _patient(flaky, clock).pause(1, True)
    assert flaky.calls == 1


def test_it_is_a_store_and_can_be_sent_to_another_process(build):
    store = patient(MemoryStore())
    store.plan_sweep("demo", "", build.planned(build.spec("rtn")))
    assert store.sweep("demo").name == "demo"
    with pytest.raises(UnknownName):
        store.sweep("nothing")
    sent = pickle.loads(pickle.dumps(Patient(Flaky(1), patience_s=5.0, tell=print)))
    assert sent.pause(3, True) == (3, True)
