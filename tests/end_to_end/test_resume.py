"""A sweep that is killed, resumed, broken and retried ends as one that was left alone."""

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
name: short
models: [llada-tiny]
methods: [rtn, gptq]
schemes: [w3a16-g128]
calibration: {source: tiny-text, samples: 8, length: 64, masking: uniform}
tasks: [tiny_math, tiny_facts]
limit: 4
decoding: {steps: 4, gen_length: 32, block_length: 32}
outliers: {samples: 2, length: 64}
"""
SCORES = """
    SELECT model, method, scheme, task, metric, value, stderr, n FROM results
    ORDER BY 1, 2, 3, 4, 5
"""
COMMITTED = "SELECT trial_id, unit_key, attempt, done_s FROM unit WHERE state = 'DONE'"


def test_a_sweep_killed_three_times_ends_with_the_undisturbed_leaderboard(folder, tmp_path_factory):
    calm = type(folder)(tmp_path_factory.mktemp("calm"))
    for place in (folder, calm):
        place.write("sweep.yaml", SWEEP)
    calm.run("launch", "sweep.yaml")

    folder.kill_at(1, "launch", "sweep.yaml")
    kept = [set(folder.query(COMMITTED))]
    folder.kill_at(2, "resume")
    kept.append(set(folder.query(COMMITTED)))
    folder.kill_at(4, "resume")
    kept.append(set(folder.query(COMMITTED)))
    folder.run("resume")
    final = set(folder.query(COMMITTED))

    assert len(kept[0]) >= 1
    assert kept[0] <= kept[1] <= kept[2] <= final, "a committed unit was run again"
    assert folder.query(SCORES) == calm.query(SCORES)
    assert len(final) == len(calm.query(COMMITTED))


def test_a_finished_sweep_is_not_run_again(folder):
    folder.write("sweep.yaml", SWEEP.replace("[rtn, gptq]", "[rtn]"))
    first = folder.run("launch", "sweep.yaml")
    again = folder.run("launch", "sweep.yaml")
    assert "done in" in first
    assert "done in" not in again
    assert "llada-tiny" in again, "the leaderboard is printed all the same"
    assert folder.query("SELECT max(attempt) FROM trial") == [(1,)]


METHOD = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dllm_sweep.methods.rtn import Rtn


@dataclass(frozen=True, kw_only=True)
class Fragile(Rtn):
    '''Rounds to nearest unless a file tells it to fail.'''

    def quantize(self, model, scheme, calibration, *, seed=0, workspace):
        if Path({marker!r}).exists():
            raise ValueError('the marker is there')
        return super().quantize(model, scheme, calibration, seed=seed, workspace=workspace)
"""


def test_a_failing_method_leaves_its_neighbours_alone_and_can_be_retried(folder):
    marker = folder.path / "fail"
    marker.touch()
    folder.write("my_methods.py", METHOD.format(marker=str(marker)))
    folder.write("sweep.yaml", SWEEP.replace("[rtn, gptq]", "[rtn, 'my_methods.py:Fragile']"))

    output = folder.run("launch", "sweep.yaml", code=1)
    assert "the marker is there" in output
    states = dict(folder.query("SELECT method, state FROM trial"))
    assert states.pop("fp") == states.pop("rtn") == "SUCCEEDED"
    assert list(states.values()) == ["FAILED"]
    ((key, kind, message),) = folder.query("SELECT trial_key, error_type, message FROM failures")
    assert (kind, message) == ("ValueError", "the marker is there")
    log = folder.run("logs", key[:12])
    assert "Traceback" in log
    assert "ValueError: the marker is there" in log

    marker.unlink()
    folder.run("retry", "--failed")
    assert {state for (state,) in folder.query("SELECT state FROM trial")} == {"SUCCEEDED"}
    attempts = folder.query(
        "SELECT a.attempt, a.end_reason FROM attempt a JOIN trial t ON t.id = a.trial_id"
        " WHERE t.trial_key = ? ORDER BY 1",
        key,
    )
    assert attempts == [(1, "ERROR"), (2, "OK")]
