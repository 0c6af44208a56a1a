"""A cluster whose machines are started when they are asked for, by Ray's own autoscaler."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from dllm_sweep.db.connect import open_store

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("sweep_driver.py")
OPEN = {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
    "RAY_AUTH_MODE": "disabled",
}
WAIT_S = 180
GPU_MACHINE = {
    "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80 * 2**20},
    "node_config": {},
    "min_workers": 0,
    "max_workers": 2,
}


def free_port():
    with socket.socket() as found:
        found.bind(("", 0))
        return found.getsockname()[1]


def config(address):
    from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {
        "type": "fake_multinode",
        "gcs_address": address,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    }
    return BASE_READONLY_CONFIG | {
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": provider,
        "available_node_types": {"ray.head.default": head, "gpus": GPU_MACHINE},
    }


@pytest.fixture(scope="module")
def address():
    """A head without cores, and an autoscaler that starts machines with one GPU each."""
    import ray

    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        address = f"{ray.util.get_node_ip_address()}:{port}"
        written = Path(folder) / "autoscaler.yaml"
        written.write_text(yaml.safe_dump(config(address)))
        ray_command = Path(sys.executable).with_name("ray")
        head = subprocess.Popen(
            [
                *(ray_command, "start", "--head", "--block", f"--port={port}", "--num-cpus=0"),
                *("--include-dashboard=false", f"--object-store-memory={80 * 2**20}"),
                *(f"--autoscaling-config={written}", f"--temp-dir={folder}"),
            ],
            env=os.environ | OPEN | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            connect(address)
            yield address
            ray.shutdown()
        finally:
            os.killpg(head.pid, signal.SIGKILL)
            head.wait()


def connect(address):
    import ray

    until = time.monotonic() + WAIT_S
    while True:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionError:
            assert time.monotonic() < until


def gpu_machines():
    import ray

    return [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]


def run(address, store, source, code):
    told = {"store": store, "sweep": "sweep", "trials": 2, "source": source, "address": address}
    driver = subprocess.run(
        [sys.executable, str(DRIVER), json.dumps(told)],
        env=os.environ | OPEN,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert driver.returncode == code, driver.stdout + driver.stderr
    return driver.stdout + driver.stderr


def test_machines_are_started_for_trials_that_need_them_and_let_go_when_idle(address, tmp_path):
    assert gpu_machines() == []
    store = f"sqlite:///{tmp_path}/store.db"
    output = run(address, store, "resources: {gpus: 1}", 0)
    assert "trial 0, trial 1 wait for a machine with 1 GPUs + 1 CPUs: none is up" in output
    opened = open_store(store)
    states = opened.query("SELECT state FROM trial").rows
    opened.close()
    assert states == (("SUCCEEDED",),) * 2
    until = time.monotonic() + WAIT_S
    while gpu_machines():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_what_the_autoscaler_can_never_start_is_refused(address, tmp_path):
    store = f"sqlite:///{tmp_path}/store.db"
    output = run(address, store, "resources: {gpus: 2}", 4)
    assert "no machine can ever carry this: trial 0, trial 1 ask for 2 GPUs" in output
    assert "the largest machine (gpus) has 1 GPUs" in output
