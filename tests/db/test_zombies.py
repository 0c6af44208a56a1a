"""Workers that are taken for dead and are not leave nothing in the results."""

from __future__ import annotations

import pytest

from dllm_sweep.db.connect import open_store
from dllm_sweep.records import Artifact, Metric, UnitResult
from tests.db.zombies import Report, _trials, examine, run, score_of


@pytest.mark.parametrize("seed", range(2))
def test_a_random_run_with_zombies_mixes_nothing(store_url, seed):
    report = run(store_url, seed)
    assert (report.mixed, report.doubled, report.missing) == (0, 0, 0)
    assert report.stalls > 0


def test_a_mixture_would_be_seen(sql_store, build):
    """The check of the runs, on a trial whose second task was measured on other weights."""
    sql_store.plan_sweep("demo", "", _trials(1))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    claim = sql_store.claim(lease, sql_store.trials(lease.sweep_id)[0].id, "c", build.host)
    quantize, *tasks = claim.trial.units()
    file = Artifact(kind="weights", path="a", sha256="a" * 64, bytes=1)
    sql_store.commit_unit(claim, UnitResult(unit=quantize, wall_s=0.0, artifacts=(file,)))
    for unit, weights in zip(tasks[:2], ("a" * 64, "b" * 64), strict=True):
        value = score_of(weights, unit.task)
        metric = Metric(task=unit.task, name="acc", value=value, stderr=None, n=1)
        sql_store.commit_unit(claim, UnitResult(unit=unit, wall_s=0.0, metrics=(metric,)))
    report = Report()
    examine(sql_store, "demo", report)
    assert (report.mixed, report.doubled, report.missing) == (1, 0, 1)


def test_the_store_of_a_run_can_be_read_afterwards(store_url):
    report = run(store_url, 7)
    store = open_store(store_url)
    attempts = store.query("SELECT COUNT(*) FROM attempt").rows
    assert attempts == ((report.attempts,),)
    store.close()
