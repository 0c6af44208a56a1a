"""The Slurm script, run with stand-ins for Slurm's own programs and a real Ray of two nodes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "cluster" / "slurm.sh"
JOB_IDS = count(os.getpid() % 9000 + 1000)

SRUN = """\
#!/bin/bash
while [[ $1 == --* ]]; do shift; done
if [[ $1 == hostname ]]; then echo 127.0.0.1; exit; fi
exec "$@"
"""
SCONTROL = """\
#!/bin/bash
if [[ $1 == show ]]; then printf 'node-a\\nnode-b\\n'; else echo "$@" >> "$SLURM_LOG"; fi
"""
LAUNCH = """\
import os, pathlib, signal, sys, time
import ray
log = pathlib.Path(os.environ["SLURM_LOG"])
signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
ray.init(address=sys.argv[sys.argv.index("--address") + 1], log_to_driver=False)
end = time.monotonic() + 60
while len([n for n in ray.nodes() if n["Alive"]]) < 2 and time.monotonic() < end:
    time.sleep(0.2)
nodes = len([n for n in ray.nodes() if n["Alive"]])
with log.open("a") as out:
    out.write(f"nodes {nodes} auth {os.environ['RAY_AUTH_MODE']} {' '.join(sys.argv[1:3])}\\n")
if os.environ.get("WAIT"):
    signal.pause()
"""


@pytest.fixture
def job_id():
    """Another one for each job: the ports of the one before may still be closing."""
    return str(next(JOB_IDS))


@pytest.fixture
def site(tmp_path, job_id):
    """A Slurm job's environment, with its programs replaced by ones that run everything here."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "launch.py").write_text(LAUNCH)
    launch = f'#!/bin/bash\nexec {sys.executable} {tmp_path}/launch.py "$@"\n'
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "dllm-sweep": launch}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NODELIST": "node-[a-b]",
        "SLURM_LOG": str(tmp_path / "log"),
        "DLLM_SWEEP_STORE": "postgresql://nobody@localhost/nothing",
        "DLLM_SWEEP_SHARED": str(tmp_path),
    }


@pytest.fixture
def job(site, tmp_path, job_id):
    """Starts the script; afterwards nothing of it is left."""
    started = []

    def start(**more):
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "sweep.yaml"],
            env=site | more,
            cwd=tmp_path,
            start_new_session=True,
            stdout=(tmp_path / "out").open("w"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=30)
    shutil.rmtree(f"/tmp/ray-{job_id}", ignore_errors=True)


def wait_for(condition, what, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


@pytest.mark.ray
@pytest.mark.slow
def test_the_job_starts_two_nodes_with_a_token_and_runs_the_sweep(job, tmp_path):
    process = job()
    assert process.wait(timeout=120) == 0, (tmp_path / "out").read_text()
    log = (tmp_path / "log").read_text().splitlines()
    assert log == ["nodes 2 auth token launch sweep.yaml"]
    assert not list(tmp_path.glob(".ray-token-*"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_that_is_preempted_stops_softly_and_goes_back_into_the_queue(job, tmp_path, job_id):
    process = job(WAIT="1")
    log = tmp_path / "log"
    wait_for(lambda: log.exists(), (tmp_path / "out").read_text)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 130
    assert log.read_text().splitlines()[-1] == f"requeue {job_id}"


def test_without_a_store_that_outlives_the_nodes_the_job_says_so(site, tmp_path):
    site.pop("DLLM_SWEEP_STORE")
    done = subprocess.run(
        ["bash", str(SCRIPT), "sweep.yaml"], env=site, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "Postgres" in done.stderr


def test_the_scripts_for_clusters_are_ones_that_bash_can_read():
    for file in SCRIPT.parent.glob("*.sh"):
        assert subprocess.run(["bash", "-n", str(file)], check=False).returncode == 0, file
    assert shutil.which("bash")
