"""Crash points that only whole processes show: real controllers on a real Ray of several nodes."""

import contextlib
import signal
import sqlite3
import time
from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = "round-0"
WAIT_S = 240
DONE = "SELECT COUNT(*) FROM unit WHERE state = 'DONE'"


@pytest.fixture(scope="module")
def cluster():
    from chaos_kit.site import RayCluster

    made = RayCluster()
    yield made
    made.close()


@pytest.fixture(scope="module")
def small_cluster():
    """A cluster whose machines have little memory left."""
    from chaos_kit.site import RayCluster

    total, used = memory()
    made = RayCluster(memory_limit=(used + 3 * 2**30) / total)
    yield made
    made.close()


class Stage:
    """A planned sweep, and controllers for it on a cluster."""

    def __init__(self, folder, address):
        from chaos_kit.site import Controllers, SqliteDatabase, files_of
        from chaos_kit.sweeps import SOURCE, Rules, planned

        self.database, self.trials = SqliteDatabase(folder), planned(7, 2, 1)
        self.files, self.folder = files_of(self.database.url, folder), folder
        (self.files / "begun").mkdir(parents=True)
        (folder / "logs").mkdir()
        self.rules = Rules(self.files)
        with contextlib.closing(self.database.store()) as store:
            store.plan_sweep(SWEEP, SOURCE, self.trials)
        self.logs = folder / "logs"
        self.url, self.moments = self.database.url, []
        self.controllers = Controllers(self.url, address, self.folder, self.logs)
        self.controllers.sweep = SWEEP

    def on(self, address):
        """Go on with another cluster."""
        from chaos_kit.site import Controllers

        self.controllers.end()
        self.controllers = Controllers(self.url, address, self.folder, self.logs)
        self.controllers.sweep = SWEEP

    def ask(self, sql):
        with contextlib.closing(sqlite3.connect(self.database.path, timeout=30)) as link:
            return link.execute(sql).fetchall()

    def slowly(self, seconds):
        for trial in self.trials:
            unit = trial.units[-1].unit.key
            rule = {"id": trial.label, "unit": unit, "when": "before", "once": True}
            self.rules.add(trial.spec.key, rule | {"act": "unit is slow", "value": seconds})

    def wait_for_units(self, count):
        self.wait_until(DONE, count)

    def wait_until(self, sql, count=1):
        end_s = time.monotonic() + WAIT_S
        while self.ask(sql)[0][0] < count:
            assert time.monotonic() < end_s, self.output()
            time.sleep(0.1)

    def run(self, *arguments):
        return self.ended(self.controllers.start(*arguments))

    def ended(self, process):
        self.moments.append(time.time())
        code = process.wait(timeout=WAIT_S)
        self.moments.append(time.time())
        return code

    def output(self):
        return "\n".join(log.read_text() for log in sorted(self.logs.iterdir()))

    def account(self):
        from chaos_kit.ledger import account
        from chaos_kit.sweeps import undisturbed

        expected = undisturbed(SWEEP, self.trials)
        known = (self.database, self.files, SWEEP, self.trials, expected)
        return account(*known, self.moments, frozenset())


@pytest.fixture
def stage(cluster, tmp_path):
    made = Stage(tmp_path, cluster.address)
    yield made
    made.controllers.end()


def test_a_controller_that_dies_after_a_claim_leaves_a_trial_that_the_next_one_runs(stage):
    assert stage.run("--die-at", "1") == 75
    assert stage.ask("SELECT attempt, ended_s FROM attempt") == [(1, None)]
    assert stage.ask(DONE) == [(0,)]

    assert stage.run() == 0, stage.output()

    first = "SELECT attempt, end_reason FROM attempt WHERE trial_id = 1 ORDER BY 1"
    assert stage.ask(first) == [(1, "LOST"), (2, "OK")]
    found = stage.account()
    assert found.holds, found
    assert found.redone == 0


def test_ctrl_c_once_or_twice_loses_nothing_and_is_resumed(stage):
    stage.slowly(3.0)
    for times, units in ((1, 3), (2, 8)):
        process = stage.controllers.start()
        stage.wait_for_units(units)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert stage.ended(process) == 130, stage.output()
        open_now = "SELECT COUNT(*) FROM trial WHERE state IN ('RUNNING', 'FAILED')"
        assert stage.ask(open_now) == [(0,)]
        assert times > 1 or stage.account().redone == 0, "what was in flight had time to end"

    assert stage.run() == 0, stage.output()

    found = stage.account()
    assert found.holds, found


def test_a_worker_that_ray_ends_for_its_memory_is_told_apart_and_tried_again(
    small_cluster, tmp_path
):
    stage = Stage(tmp_path, small_cluster.address)
    rule = {"id": "fill", "unit": "evaluate:hard", "when": "before", "once": True}
    rule |= {"act": "unit fills the memory", "value": 12288}
    stage.rules.add(stage.trials[1].spec.key, rule)
    process = stage.controllers.start()
    try:
        stage.wait_until("SELECT COUNT(*) FROM failures WHERE end_reason = 'HOST_OOM'")
        with contextlib.closing(sqlite3.connect(stage.database.path, timeout=30)) as link:
            link.execute("UPDATE trial SET not_before_s = 0")
            link.commit()
        assert stage.ended(process) == 0, stage.output()
    finally:
        stage.controllers.end()
    found = stage.account()
    assert found.holds, found
    (message,) = stage.ask("SELECT message FROM failures WHERE end_reason = 'HOST_OOM'")[0]
    assert "ran out of memory" in message


def test_a_sweep_goes_on_with_another_cluster_when_the_head_is_lost(
    cluster, small_cluster, tmp_path, monkeypatch
):
    # A driver waits this long for a head to come back; a minute if nothing is said.
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "10")
    stage = Stage(tmp_path, cluster.address)
    stage.slowly(2.0)
    process = stage.controllers.start()
    try:
        stage.wait_for_units(4)
        stage.moments.append(time.time())
        cluster.close()
        assert stage.ended(process) != 0
        stage.on(small_cluster.address)
        assert stage.run() == 0, stage.output()
    finally:
        stage.controllers.end()
    found = stage.account()
    assert found.holds, found


def memory():
    """Bytes of this machine's memory, and how many of them are taken."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (x.split(":") for x in lines)}
    return sizes["MemTotal"], sizes["MemTotal"] - sizes["MemAvailable"]
