"""Several machines on one: what a sweep gives does not depend on how many, nor on their deaths."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from dllm_sweep.db.connect import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("sweep_driver.py")
PATH = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
WAIT_S = 120
RESULTS = "SELECT * FROM results ORDER BY trial_key, task, metric"
KEPT = "SELECT trial_id, replace(unit_key, '/', '-') FROM unit WHERE state = 'DONE'"
ENDS = "SELECT end_reason FROM attempt ORDER BY 1"
SLOW_TO_DIE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class Machines:
    """A head, and machines that are added and removed; each carries one worker."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
        head = {"num_cpus": 1, "_system_config": SLOW_TO_DIE, **small}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self._cluster.address
        self._added = []

    def have(self, count):
        """Add or remove machines until there are `count`."""
        while len(self._added) + 1 > count:
            self._cluster.remove_node(self._added.pop(), allow_graceful=False)
        while len(self._added) + 1 < count:
            node = self._cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
            self._added.append(node)

    def lose_one(self):
        """One machine vanishes without a word."""
        self._cluster.remove_node(self._added.pop(), allow_graceful=False)

    def freeze_one(self):
        """One machine is cut off, but its workers go on; returns what to thaw."""
        node = self._added.pop()
        raylet = node.all_processes["raylet"][0].process.pid
        os.kill(raylet, signal.SIGSTOP)
        return raylet

    def close(self):
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def machines():
    kept = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = PATH
    made = Machines()
    yield made
    made.close()
    if kept is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = kept


class Sweep:
    """A sweep of made-up work in a store of its own."""

    def __init__(self, folder, address):
        self.store, self.address = f"sqlite:///{folder}/store.db", address
        self.files = folder / "store-files"
        self.files.mkdir(parents=True)
        self._drivers = []

    def script(self, *rules):
        (self.files / "script.json").write_text(json.dumps(rules))

    def start(self, *, name="sweep", trials=3, source="", **options):
        told = {
            "store": self.store,
            "sweep": name,
            "trials": trials,
            "source": source,
            "address": self.address,
        }
        driver = subprocess.Popen(
            [sys.executable, str(DRIVER), json.dumps(told | options)],
            env=os.environ | {"PYTHONPATH": PATH},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._drivers.append(driver)
        return driver

    def close(self):
        for driver in self._drivers:
            driver.kill()
            driver.wait()

    def run(self, **options):
        return finished(self.start(**options))

    def rows(self, sql):
        opened = open_store(self.store)
        try:
            return opened.query(sql).rows
        finally:
            opened.close()

    def marks(self):
        """What was begun so far."""
        names = (mark.name.split(".") for mark in (self.files / "begun").iterdir())
        return {Mark(int(n[0]), int(n[1]), n[2], int(n[3]), int(n[4])) for n in names}

    def begun(self, count, unit="evaluate"):
        """Wait until `count` units of a kind were begun; returns the processes that did."""
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            marks = list((self.files / "begun").glob(f"*.{unit}*"))
            if len(marks) >= count:
                return {int(mark.name.split(".")[-2]) for mark in marks}
            time.sleep(0.05)
        raise AssertionError(f"{count} units of {unit} were not begun")


class Mark(NamedTuple):
    """That a unit was begun, by whom and when."""

    trial: int
    attempt: int
    unit: str
    pid: int
    at_ns: int


def gone(pids):
    """Wait until none of these processes runs."""
    until = time.monotonic() + WAIT_S
    while any(map(lives, pids)):
        assert time.monotonic() < until, "a worker outlives its controller"
        time.sleep(0.1)


def finished(driver, code=0):
    output = driver.communicate(timeout=WAIT_S)[0]
    assert driver.returncode == code, output
    return output


def lives(pid):
    """Whether a process runs; one that has ended may stay listed until its parent looks."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def sweep(machines, tmp_path):
    made = Sweep(tmp_path, machines.address)
    yield made
    made.close()


@pytest.fixture(scope="module")
def calm(machines, tmp_path_factory):
    """What the results are if nothing happens, on one machine."""
    machines.have(1)
    undisturbed = Sweep(tmp_path_factory.mktemp("calm"), machines.address)
    undisturbed.run()
    return undisturbed.rows(RESULTS)


def test_results_are_the_same_on_one_two_and_four_machines(machines, calm, tmp_path):
    assert len(calm) == 6
    for count in (2, 4):
        machines.have(count)
        sweep = Sweep(tmp_path / str(count), machines.address)
        sweep.run()
        assert sweep.rows(RESULTS) == calm
        assert sweep.rows(ENDS) == (("OK",),) * 3


def test_a_machine_that_vanishes_in_the_middle_costs_nothing_but_time(machines, calm, sweep):
    machines.have(2)
    gate = sweep.files / "gate"
    sweep.script({"unit": "evaluate*", "act": "wait_for", "value": str(gate)})
    driver = sweep.start()
    assert len(sweep.begun(2)) == 2
    machines.lose_one()
    gate.touch()
    finished(driver)
    assert sweep.rows(RESULTS) == calm


def test_a_worker_behind_a_cut_link_cannot_write_once_another_has_its_trial(machines, calm, sweep):
    machines.have(2)
    gate = sweep.files / "gate"
    sweep.script({"unit": "evaluate*", "attempts": [1], "act": "wait_for", "value": str(gate)})
    driver = sweep.start()
    workers = sweep.begun(2)
    raylet = machines.freeze_one()
    machines.have(2)
    sweep.begun(3)  # the trial of the worker that is cut off is run by another
    gate.touch()
    finished(driver)
    os.kill(raylet, signal.SIGCONT)
    assert sweep.rows(RESULTS) == calm
    gone(workers)
    assert sweep.rows(RESULTS) == calm


def test_workers_that_are_killed_or_leave_are_replaced(machines, calm, sweep):
    machines.have(2)
    sweep.script(
        {"label": "trial 1", "unit": "quantize", "attempts": [1], "act": "kill"},
        {"label": "trial 2", "unit": "evaluate*", "attempts": [1], "act": "leave", "value": 3},
    )
    sweep.run()
    assert sweep.rows(RESULTS) == calm
    assert ("LOST",) in sweep.rows(ENDS)


def test_a_controller_that_is_killed_is_followed_by_one_that_repeats_nothing(machines, calm, sweep):
    machines.have(2)
    sweep.script({"act": "sleep", "value": 0.3})
    driver = sweep.start()
    workers = sweep.begun(4)
    driver.kill()
    driver.communicate()
    gone(workers)
    kept = set(sweep.rows(KEPT))
    before = sweep.marks()
    sweep.run()
    again = sweep.marks() - before
    assert {(mark.trial, mark.unit) for mark in again}.isdisjoint(kept)
    assert len(kept) + len({(mark.trial, mark.unit) for mark in again}) == 14
    assert sweep.rows(RESULTS) == calm


def test_two_sweeps_of_two_users_share_a_store_and_a_cluster(machines, sweep):
    machines.have(2)
    drivers = [sweep.start(name=name, trials=2) for name in ("hers", "his")]
    for driver in drivers:
        finished(driver)
    assert sweep.rows("SELECT sweep, count(*) FROM results GROUP BY 1 ORDER BY 1") == (
        ("hers", 4),
        ("his", 4),
    )


def test_a_second_controller_of_a_sweep_is_refused_and_named(machines, sweep):
    machines.have(1)
    gate = sweep.files / "gate"
    sweep.script({"act": "wait_for", "value": str(gate)})
    first = sweep.start(trials=1)
    sweep.begun(1)
    output = finished(sweep.start(trials=1), code=3)
    assert f"LeaseHeld: sweep 'sweep' is being run by process {first.pid}" in output
    gate.touch()
    finished(first)


def test_a_demand_that_no_machine_can_ever_meet_is_refused_before_anything_is_claimed(
    machines, sweep
):
    machines.have(1)
    source = "resources: {labels: {zone: moon}}"
    output = finished(sweep.start(source=source), code=4)
    assert "ClusterError: no machine can ever carry this: trial 0, trial 1, trial 2" in output
    assert "label zone=moon" in output
    assert sweep.rows("SELECT max(attempt) FROM trial") == ((0,),)
