"""`status` and `sweeps`: who runs what, how far, how long still."""

import dataclasses
import re

import pytest

from dllm_sweep import process
from dllm_sweep.reports.status import SHOWN
from dllm_sweep.spec import Unit


def test_status_says_who_runs_the_sweep_and_how_far_it_is(bench):
    bench.succeed("fp")
    claim = bench.claim("rtn")
    bench.commit(claim, Unit(kind="quantize"), b"w")
    text = bench.cli("status").output
    assert "sweep 'demo': 2 pending, 1 running, 1 succeeded; 4 of 15 units done" in text
    assert "run by process 1 on here, its lease for" in text
    assert re.search(r"on here \(cpu\) for \d+ s, heard \d+ s ago", text)


def test_what_is_left_is_corrected_by_how_long_the_done_units_took(bench):
    bench.succeed("fp")  # 3 units of 40 / 3 s as planned took 1 + 3 + 3 s
    (sweep,) = bench.json("sweeps")
    assert sweep["left"] == pytest.approx(3 * 40 * 7 / 40)


def test_a_sweep_whose_lease_ran_out_is_abandoned_and_says_what_to_do(bench):
    bench.claim("rtn")
    bench.sql("UPDATE sweep SET lease_until_s = lease_until_s - 200")
    assert bench.json("sweeps")[0]["state"] == "abandoned"
    text = bench.cli("status").output
    assert "process 1 on here ran it, its lease ran out 2 min ago" in text
    assert "`dllm-sweep resume` goes on" in text


def test_a_dead_controller_of_this_machine_is_told_before_its_lease_runs_out(bench):
    bench.store.release_lease(bench.lease)
    dead = dataclasses.replace(process.this_process(), process_started_s=1.0)
    bench.store.take_lease("demo", dead, seconds=60)
    assert bench.json("sweeps")[0]["state"] == "abandoned"
    assert f"process {dead.pid} on {dead.host} ran it and is gone" in bench.cli("status").output


def test_each_sweep_of_a_store_has_its_state_and_counts(bench):
    bench.plan("second", "rtn", seed=5)
    bench.plan("third", "gptq", seed=6)
    assert bench.cli("pause", "third").exit_code == 0
    assert bench.cli("cancel", "--all", "--sweep", "second").exit_code == 0
    rows = {row["sweep"]: row for row in bench.json("sweeps")}
    states = {name: row["state"] for name, row in rows.items()}
    assert states == {"demo": "running", "second": "finished", "third": "paused"}
    assert rows["demo"]["controller"] == "here:1"
    assert (rows["demo"]["pending"], rows["second"]["cancelled"]) == (4, 1)
    assert rows["second"]["left"] == 0
    bench.store.release_lease(bench.lease)
    assert {row["sweep"]: row["state"] for row in bench.json("sweeps")}["demo"] == "stopped"
    assert "nobody runs it" in bench.cli("status", "demo").output


def test_a_store_without_sweeps_lists_none(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from dllm_sweep.cli import main
    from dllm_sweep.db.connect import open_store

    open_store(tmp_path / "new.db").close()
    done = CliRunner().invoke(main, ["sweeps", "--store", str(tmp_path / "new.db")])
    assert done.output == "no sweeps yet\n"


def test_a_large_sweep_shows_what_runs_and_failed_and_json_has_everything(bench):
    specs = [bench.build.spec("rtn", seed=seed) for seed in range(1, SHOWN + 20)]
    bench.store.plan_sweep("demo", "name: demo", bench.build.planned(*specs))
    bench.fail("gptq")
    bench.claim("awq")
    lines = bench.cli("status").output.splitlines()
    total = len(specs) + 4
    assert lines[1].split()[2:5] == ["awq", "w4a16-g128", "RUNNING"]
    assert lines[2].split()[2:5] == ["gptq", "w4a16-g128", "FAILED"]
    assert f"{total - SHOWN} trials more: --all lists them" in lines
    assert "`dllm-sweep failures` says what went wrong" in lines
    assert len(bench.json("status")) == total
    assert len(bench.cli("status", "--all").output.splitlines()) == 1 + total + 3


def test_watching_a_sweep_that_is_over_ends(bench):
    bench.cli("cancel", "--all")
    assert bench.cli("status", "--watch").exit_code == 0
