"""`plan --gpus`: what a sweep would take and cost."""

import json

import pytest
from click.testing import CliRunner

from dllm_sweep.cli import main


@pytest.fixture
def sweep(workplace):
    (workplace / "sweep.yaml").write_text(
        json.dumps(
            {
                "models": ["toy"],
                "methods": ["rtn", "gptq"],
                "schemes": ["w4a16-g128", "w4a4"],
                "tasks": ["own.yaml"],
                "calibration": "text.txt",
                "outliers": False,
            }
        )
    )
    return workplace


def run(*arguments):
    return CliRunner().invoke(main, ["plan", "sweep.yaml", *arguments], catch_exceptions=False)


def quantities(*arguments):
    done = run(*arguments, "--format", "json")
    assert done.exit_code == 0
    return {row["quantity"]: row for row in json.loads(done.output)}


def test_more_gpus_take_less_time_and_no_order_of_work_beats_the_bound(sweep):
    one, four = quantities("--gpus", "1"), quantities("--gpus", "4")
    assert four["makespan"]["value"] < one["makespan"]["value"]
    for found in (one, four):
        assert found["lower bound"]["value"] <= found["makespan"]["value"] + 0.1
        assert found["baselines complete"]["value"] <= found["makespan"]["value"]
    assert one["trials"]["value"] == 5
    assert not (sweep / "dllm-sweep.db").exists()


def test_the_cost_is_that_of_all_gpus_until_the_end(sweep):
    found = quantities("--gpus", "2", "--price", "3.5")
    hours = 2 * found["makespan"]["value"] / 3600
    assert found["gpu hours"]["value"] == pytest.approx(hours, abs=0.01)
    assert found["cost"]["value"] == pytest.approx(3.5 * hours, abs=0.01)


def test_several_runs_give_a_median_and_a_90th_percentile(sweep):
    found = quantities("--gpus", "2", "--runs", "9")
    assert found["makespan"]["p50"] < found["makespan"]["p90"]


def test_people_read_durations_and_what_is_shared(sweep):
    done = run("--gpus", "2")
    assert "lower bound" in done.output
    assert "in full precision" in done.output


@pytest.mark.parametrize("options", [["--price", "2"], ["--runs", "5"], ["--mtbf", "24"]])
def test_options_of_the_simulation_ask_for_gpus(sweep, options):
    done = run(*options)
    assert done.exit_code == 2
    assert "add --gpus" in done.output
