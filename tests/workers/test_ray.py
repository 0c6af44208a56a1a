"""The pool and the store's proxy on a real Ray: what crosses the border, and what a death is."""

import os
import signal
import time

import pytest

from dllm_sweep.errors import Fenced, LeaseHeld, UnknownName
from dllm_sweep.process import this_process
from dllm_sweep.records import EndReason, Holder, TrialState
from dllm_sweep.spec import Unit
from dllm_sweep.workers.messages import Demand

pytestmark = [pytest.mark.ray, pytest.mark.slow]

QUANTIZE = Unit(kind="quantize")
METHOD = """
import sys, time
from dataclasses import dataclass
from pathlib import Path
from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Own(Rtn):
    def quantize(self, model, scheme, calibration, *, seed=0, progress=lambda done, total: None):
        {act}
"""


@pytest.fixture(scope="module")
def cluster():
    import ray

    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, **quiet)
    yield
    ray.shutdown()


@pytest.fixture
def proxy(cluster, store, tmp_path):
    from dllm_sweep.workers.store_actor import start_store_actor

    return start_store_actor(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def pool(proxy, options):
    from dllm_sweep.workers.ray_pool import RayPool

    made = RayPool(size=1, demand=Demand(cpus=1, gpus=0), store=proxy, options=options)
    yield made
    made.close()


@pytest.fixture
def own_claim(claim_of, make_trial, tmp_path):
    def make(act):
        (tmp_path / "own.py").write_text(METHOD.format(act=act))
        return claim_of(make_trial(f"{tmp_path / 'own.py'}:Own"))

    return make


def finish(pool):
    while not (done := pool.wait(60)):
        pass
    return done[0].result


def test_errors_of_the_store_keep_their_class_across_the_border(proxy, claim_of, make_trial):
    claim = claim_of(make_trial())
    with pytest.raises(UnknownName) as unknown:
        proxy.sweep("swep")
    assert unknown.value.choices == ("sweep",)
    other = Holder(host="elsewhere", pid=7, process_started_s=1.0)
    with pytest.raises(LeaseHeld) as held:
        proxy.take_lease("sweep", other, seconds=60)
    assert held.value.pid == this_process().pid
    proxy.take_lease("sweep", other, seconds=60, takeover=True)
    from dllm_sweep.records import UnitResult

    with pytest.raises(Fenced):
        proxy.commit_unit(claim, UnitResult(unit=QUANTIZE, wall_s=0.0))


def test_a_worker_killed_from_outside_is_lost_in_one_short_line(pool, own_claim, tmp_path):
    begun = tmp_path / "begun"
    claim = own_claim(f"Path({str(begun)!r}).touch(); time.sleep(600)")
    pid = pool.host(0).pid
    pool.submit(0, claim, QUANTIZE)
    while not begun.exists():
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    death = finish(pool)
    assert death.reason is EndReason.LOST
    assert not death.machine_lost
    assert "process died" in death.message
    assert "\n" not in death.message
    pool.replace(0)
    assert pool.host(0).pid != pid


def test_a_method_that_calls_sys_exit_fails_its_own_trial(pool, own_claim):
    pool.submit(0, own_claim("sys.exit(3)"), QUANTIZE)
    outcome = finish(pool)
    assert outcome.state is TrialState.FAILED
    assert outcome.failure.reason is EndReason.ERROR
    assert outcome.fresh_process
