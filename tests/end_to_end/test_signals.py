"""A signal to every process of a run, as `timeout`, Slurm and containers send it."""

import os
import signal

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
name: short
models: [llada-tiny]
methods: [rtn]
schemes: [w3a16-g128]
tasks: [tiny_facts]
limit: 4
outliers: null
"""


def test_a_run_whose_ray_is_ended_with_it_gives_the_sweep_back(folder):
    folder.write("sweep.yaml", SWEEP)
    process = folder.start("launch", "sweep.yaml")
    for line in process.stdout:
        if "units to do" in line:
            break
    os.killpg(process.pid, signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert folder.query("SELECT count(*) FROM trial WHERE state = 'RUNNING'") == [(0,)]
    folder.run("resume")
    assert {state for (state,) in folder.query("SELECT state FROM trial")} == {"SUCCEEDED"}
