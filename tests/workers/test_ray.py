"""The pool and the store's proxy on a real Ray: what crosses the border, and what a death is."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_sweep.errors import ClusterError, Fenced, LeaseHeld, UnknownName
from dllm_sweep.process import this_process
from dllm_sweep.records import Demand, EndReason, Holder, TrialState
from dllm_sweep.spec import Unit

pytestmark = [pytest.mark.ray, pytest.mark.slow]

QUANTIZE = Unit(kind="quantize")
ONE = Demand(cpus=1)
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAIT_S = 90


@pytest.fixture(scope="module")
def cluster():
    import ray

    quiet = {"log_to_driver": False, "include_dashboard": False, "logging_level": "ERROR"}
    paths = {"PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=2,
        labels={"kind": "big"},
        runtime_env={"env_vars": paths},
        **quiet,
    )
    yield
    ray.shutdown()


@pytest.fixture
def link(cluster, store, tmp_path):
    from dllm_sweep.workers.store_actor import start_writer

    return start_writer(f"sqlite:///{tmp_path / 'store.db'}")


@pytest.fixture
def proxy(link):
    return link.open()


@pytest.fixture
def make_pool(link, options):
    from dllm_sweep.workers.ray_pool import RayPool

    pools = []

    def make(bench="fake_bench:FakeBench", **more):
        told = replace(options, bench=bench, beat_s=0.5)
        pools.append(RayPool(link=link, options_for=lambda demand: told, **more))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def script(options):
    def write(**rule):
        options.files.mkdir(parents=True, exist_ok=True)
        (options.files / "script.json").write_text(json.dumps([rule]))

    return write


def until(met, pool):
    """Let the pool work until `met(pool)`; returns what ended meanwhile."""
    ended, limit = [], time.monotonic() + WAIT_S
    while not met(pool):
        assert time.monotonic() < limit
        ended += pool.wait(1.0)
    return ended


def first_of(pool, demand=ONE):
    pool.want({demand: 1})
    until(lambda pool: pool.workers(), pool)
    return pool.workers()[0]


def finish(pool):
    limit = time.monotonic() + WAIT_S
    while time.monotonic() < limit:
        if done := pool.wait(1.0):
            return done[0].result
    raise AssertionError("the unit did not end")


def lives(pid):
    """Whether a process runs; one that has ended may stay listed until its parent looks."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


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


def test_a_worker_killed_from_outside_is_lost_in_one_short_line(
    make_pool, claim_of, make_trial, script, options
):
    script(act="sleep", value=600)
    pool = make_pool()
    worker = first_of(pool)
    pool.submit(worker.id, claim_of(make_trial()), QUANTIZE)
    until(lambda _: list((options.files / "begun").glob("*")), pool)
    os.kill(worker.host.pid, signal.SIGKILL)
    death = finish(pool)
    assert (death.reason, death.machine_lost) == (EndReason.LOST, False)
    assert "process died" in death.message
    assert "\n" not in death.message
    until(lambda pool: pool.workers(), pool)
    (other,) = pool.workers()
    assert other.id != worker.id
    assert other.host.pid != worker.host.pid


def test_a_worker_that_is_stopped_is_killed_and_its_unit_lost(
    make_pool, claim_of, make_trial, script, options
):
    script(act="sleep", value=600)
    pool = make_pool(silent_s=6.0)
    worker = first_of(pool)
    pool.submit(worker.id, claim_of(make_trial()), QUANTIZE)
    until(lambda _: list((options.files / "begun").glob("*")), pool)
    os.kill(worker.host.pid, signal.SIGSTOP)
    death = finish(pool)
    assert (death.reason, death.machine_lost) == (EndReason.LOST, False)
    assert "no sign of life for 6 s" in death.message
    assert worker not in pool.workers()
    until(lambda _: not lives(worker.host.pid), pool)


def test_a_method_that_calls_sys_exit_fails_its_own_trial(make_pool, claim_of, make_trial, script):
    script(act="exit", value=3)
    pool = make_pool()
    pool.submit(first_of(pool).id, claim_of(make_trial()), QUANTIZE)
    outcome = finish(pool)
    assert outcome.state is TrialState.FAILED
    assert outcome.failure.reason is EndReason.ERROR
    assert outcome.fresh_process


def test_a_worker_that_is_told_to_end_gives_its_unit_up(
    make_pool, claim_of, make_trial, script, options
):
    script(act="sleep", value=600)
    pool = make_pool()
    worker = first_of(pool)
    pool.submit(worker.id, claim_of(make_trial()), QUANTIZE)
    until(lambda _: list((options.files / "begun").glob("*")), pool)
    os.kill(worker.host.pid, signal.SIGTERM)
    assert finish(pool).reason is EndReason.PREEMPTED
    assert worker not in pool.workers()


def test_no_more_workers_are_started_than_the_cluster_carries_and_idle_ones_are_let_go(make_pool):
    pool = make_pool(idle_s=0.5)
    assert pool.want({ONE: 50}) == 2
    until(lambda pool: len(pool.workers()) == 2, pool)
    assert pool.want({}) == 0
    until(lambda pool: not pool.workers(), pool)


def test_a_worker_with_two_gpus_gets_them_on_one_machine_and_gives_them_back(make_pool):
    import ray

    pool = make_pool(idle_s=0.5)
    two = Demand(cpus=0.5, gpus=2, labels=(("kind", "big"),))
    assert first_of(pool, two).demand == two
    states = [group["state"] for group in ray.util.placement_group_table().values()]
    assert "CREATED" in states
    pool.close()
    limit = time.monotonic() + WAIT_S
    while ray.available_resources().get("GPU") != 2:
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_a_label_that_no_machine_has_starts_nothing(make_pool):
    pool = make_pool()
    assert pool.want({Demand(labels=(("kind", "small"),)): 3}) == 0
    assert pool.wait(0.0) == []


def test_workers_that_cannot_start_end_the_run_with_the_reason(make_pool, monkeypatch):
    from dllm_sweep.workers import ray_pool

    monkeypatch.setattr(ray_pool, "_BACKOFF_S", 0.01)
    pool = make_pool(bench="no_such_module:Bench")
    pool.want({ONE: 1})
    with pytest.raises(ClusterError, match="No module named 'no_such_module'"):
        until(lambda pool: pool.workers(), pool)
