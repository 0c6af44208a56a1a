"""Who may run a sweep: the dead are told from the living by their processes."""

import os
import subprocess
import sys

import pytest

from dllm_sweep import process
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.errors import LeaseHeld
from dllm_sweep.process import this_process
from dllm_sweep.records import Holder


@pytest.fixture
def store():
    opened = MemoryStore()
    opened.plan_sweep("sweep", "", ())
    return opened


@pytest.fixture
def living():
    """A process that waits to be ended."""
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield other
    other.communicate()


def take_lease(store, *, takeover=False):
    return process.take_lease(store, "sweep", this_process(), seconds=60, takeover=takeover)


def holder_of(pid):
    started_s = process._started_s(pid) or 0.0
    return Holder(host=this_process().host, pid=pid, process_started_s=started_s)


def test_the_lease_of_a_dead_process_is_taken_at_once(store, living):
    held = store.take_lease("sweep", holder_of(living.pid), seconds=3600)
    living.kill()
    living.wait()
    assert take_lease(store).epoch > held.epoch


def test_the_lease_of_a_living_process_is_respected_unless_taken_over(store, living):
    held = store.take_lease("sweep", holder_of(living.pid), seconds=3600)
    with pytest.raises(LeaseHeld, match=str(living.pid)):
        take_lease(store)
    assert take_lease(store, takeover=True).epoch > held.epoch


def test_of_two_that_find_the_same_controller_dead_only_one_takes_over(store, living, monkeypatch):
    dead = holder_of(living.pid)
    store.take_lease("sweep", dead, seconds=3600)
    living.kill()
    living.wait()
    other = holder_of(os.getppid())
    really_alive = process.is_alive

    def faster(holder):
        alive = really_alive(holder)
        if not alive:
            store.take_lease("sweep", other, seconds=3600, dead=dead)
        return alive

    monkeypatch.setattr(process, "is_alive", faster)
    with pytest.raises(LeaseHeld, match=str(other.pid)):
        take_lease(store)


def test_a_process_id_used_again_does_not_keep_the_lease(store, living):
    earlier = Holder(host=this_process().host, pid=living.pid, process_started_s=1.0)
    store.take_lease("sweep", earlier, seconds=3600)
    assert take_lease(store)


def test_nobody_knows_from_here_whether_a_process_of_another_host_lives():
    assert process.is_alive(Holder(host="elsewhere", pid=1, process_started_s=0.0)) is None
