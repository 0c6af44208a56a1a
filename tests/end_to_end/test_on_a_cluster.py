"""A cluster with token and dashboard, as `ray start` makes it: jobs, clients, and who is let in."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Folder
from tests.postgres import free_port

pytestmark = [pytest.mark.ray, pytest.mark.slow]

WAIT_S = 240
SWEEP = """
name: short
models: [llada-tiny]
methods: [rtn]
schemes: [w4a16-g128, w3a16-g128]
tasks: [tiny_facts]
limit: 4
decoding: {steps: 4, gen_length: 32, block_length: 32}
outliers: null
resources: {cpus: 1}
"""
SCORES = """
    SELECT model, method, scheme, task, metric, value, stderr, n FROM results
    WHERE sweep = '{}' ORDER BY 1, 2, 3, 4, 5
"""
STATES = "SELECT state FROM trials WHERE sweep = 'short'"


@dataclass
class Machines:
    """A head with one core, and the token that lets others in."""

    folder: Path
    port: int
    client_port: int
    dashboard_port: int
    host: str
    token: str

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    @property
    def dashboard(self):
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def told(self):
        """The environment of somebody who knows the token."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    @contextlib.contextmanager
    def machine(self, *arguments):
        """One machine of the cluster, until it is not needed any more."""
        ray_command = Path(sys.executable).with_name("ray")
        bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        path = f"{ray_command.parent}{os.pathsep}{bare.get('PATH', '')}"
        started = subprocess.Popen(
            [
                *(ray_command, "start", "--block", "--num-cpus=1", "--disable-usage-stats"),
                *(f"--object-store-memory={80 * 2**20}", f"--temp-dir={self.folder}"),
                *(f"--dashboard-agent-listen-port={free_port()}", *arguments),
            ],
            env=bare | self.told | {"PATH": path},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield
        finally:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@pytest.fixture(scope="module")
def cluster():
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        made = Machines(
            folder=Path(folder),
            port=free_port(),
            client_port=free_port(),
            dashboard_port=free_port(),
            host=ray.util.get_node_ip_address(),
            token=secrets.token_hex(16),
        )
        head = (
            *("--head", f"--port={made.port}", f"--ray-client-server-port={made.client_port}"),
            *("--include-dashboard=true", f"--dashboard-port={made.dashboard_port}"),
        )
        with made.machine(*head):
            until_dashboard(made)
            yield made


def until_dashboard(cluster):
    """Wait until the dashboard takes jobs."""
    headers = {"Authorization": f"Bearer {cluster.token}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    until = time.monotonic() + WAIT_S
    while True:
        try:
            urllib.request.urlopen(request, timeout=5)
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.fixture
def database(postgres):
    with postgres.database() as url:
        yield url


class Person(Folder):
    """Somebody with a folder and an environment of their own."""

    def __init__(self, path, **variables):
        super().__init__(path)
        self._variables = {"HOME": str(path)} | variables

    def run(self, *arguments, code=0):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | self._variables
        process = subprocess.run(
            [sys.executable, "-m", "dllm_sweep", *arguments],
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
        )
        assert code in (process.returncode, None), process.stdout
        return process.stdout

    def answer(self, sql):
        return json.loads(self.run("sql", sql, "--format", "json"))


@pytest.fixture
def person(tmp_path):
    """Makes people by name; each has a folder with the sweep file."""

    def make(name, **variables):
        made = Person(tmp_path / name, **variables)
        made.path.mkdir()
        made.write("sweep.yaml", SWEEP)
        return made

    return make


def until(met, what):
    limit = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < limit, what
        time.sleep(0.5)


def test_a_sweep_runs_as_a_job_and_is_steered_from_elsewhere_through_its_store(
    cluster, database, person
):
    sender = person("sender", **cluster.told, DLLM_SWEEP_STORE=database)
    said = sender.run("launch", "sweep.yaml", "--detach", "--address", cluster.address)
    assert re.search(r"sweep 'short' runs as job dllm-sweep-short-\d", said)
    assert database.split("@")[0].rpartition(":")[2] not in said

    # Who steers knows the store, and neither the cluster nor its token.
    elsewhere = person("elsewhere", DLLM_SWEEP_STORE=database)
    elsewhere.run("pause")
    until(lambda: {"state": "RUNNING"} not in elsewhere.answer(STATES), "trials go on in a pause")
    ((key,),) = (
        row.values()
        for row in elsewhere.answer("SELECT max(trial_key) FROM trials WHERE state = 'PENDING'")
    )
    elsewhere.run("cancel", key)
    elsewhere.run("pause", "--off")
    (other,) = elsewhere.answer("SELECT trial_key FROM trials WHERE method = 'fp'")
    assert "evaluate:tiny_facts took" in elsewhere.run("logs", "--follow", other["trial_key"])
    until(lambda: "finished" in elsewhere.run("sweeps"), "the job does not end")
    found = sorted(row["state"] for row in elsewhere.answer(STATES))
    assert found == ["CANCELLED", "SUCCEEDED", "SUCCEEDED"]
    assert "llada-tiny" in elsewhere.run("status")

    elsewhere.run("retry", key, "--no-run")
    sender.run("resume", "--detach", "--address", cluster.dashboard)
    done = [{"state": "SUCCEEDED"}] * 3
    until(lambda: elsewhere.answer(STATES) == done, "the second job does not finish the sweep")

    # From outside of the cluster, on two machines: the same numbers.
    with cluster.machine(f"--address={cluster.address}"):
        client = f"ray://127.0.0.1:{cluster.client_port}"
        sender.write("again.yaml", SWEEP.replace("short", "again"))
        look = ("doctor", "--address", client)
        until(lambda: "2 machines up" in sender.run(*look, code=None), "no second machine")
        sender.run("launch", "again.yaml", "--fresh", "--address", client)
    assert elsewhere.answer(SCORES.format("again")) == elsewhere.answer(SCORES.format("short"))


@pytest.mark.parametrize("token", ["another one", None], ids=["wrong token", "no token"])
def test_nobody_is_let_in_without_the_token_and_told_so(cluster, person, token):
    shown = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {}
    stranger = person("stranger", **shown)
    said = stranger.run("launch", "sweep.yaml", "--address", cluster.address, code=4)
    assert "asks for a token, and this machine has none or another one" in said
