"""The views: documented column by column, and right about what they show."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from dllm_sweep.db.views import TOP_OUTLIERS, VIEWS
from dllm_sweep.records import Metric, TrialState, UnitResult
from dllm_sweep.spec import Unit

DOCUMENT = Path(__file__).parents[2] / "docs" / "results.md"
EXAMPLES = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def planned(sql_store, build):
    specs = build.spec("fp"), build.spec("rtn"), build.spec("gptq"), build.spec("awq")
    sql_store.plan_sweep("demo", "", build.planned(*specs))
    sql_store.plan_sweep("demo", "", build.planned(build.spec("duquant"), skip="no such grid"))
    return {row.method: row for row in sql_store.trials(1)}


@pytest.fixture
def lease(sql_store, planned, build):
    return sql_store.take_lease("demo", build.holder, seconds=60)


def _board(store):
    return {row["method"]: row for row in store.leaderboard_rows("demo").dicts()}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_has_the_columns_that_are_documented(sql_store, name):
    found = sql_store.query(f"SELECT * FROM {name}")
    assert found.columns == tuple(VIEWS[name].columns)


def test_the_page_about_results_describes_every_view_and_column():
    text = DOCUMENT.read_text(encoding="utf-8")
    for name, view in VIEWS.items():
        section = text.split(f"## `{name}`\n")[1].split("\n## ")[0]
        assert view.about in section
        described = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))
        assert described == view.columns


@pytest.mark.parametrize("sql", EXAMPLES)
def test_an_example_of_the_page_runs(sql_store, planned, lease, build, sql):
    with sql_store._engines.write.begin() as connection:
        connection.exec_driver_sql("INSERT INTO task_group VALUES ('math', 'math')")
    for method in ("fp", "rtn"):
        build.run(sql_store, lease, planned[method])
    claim = sql_store.claim(lease, planned["gptq"].id, "c", build.host)
    sql_store.end_attempt(claim, build.failure())
    assert sql_store.query(sql).rows


def test_the_loss_is_measured_against_full_precision(sql_store, planned, lease, build):
    build.run(sql_store, lease, planned["fp"], value=0.5)
    build.run(sql_store, lease, planned["rtn"], value=0.49)
    build.run(sql_store, lease, planned["gptq"], value=0.3)
    board = _board(sql_store)
    assert board["rtn"]["baseline_mean"] == 0.5
    assert board["rtn"]["delta"] == pytest.approx(-0.01)
    assert board["rtn"]["relative_drop_percent"] == pytest.approx(2.0)
    assert [board[m]["place"] for m in ("fp", "rtn", "gptq")] == [1, 2, 3]
    assert [board[m]["degradation"] for m in ("fp", "rtn", "gptq")] == [
        None,
        "moderate",
        "significant",
    ]
    assert (board["rtn"]["average_bits"], board["fp"]["average_bits"]) == (4.25, 16)


@pytest.mark.parametrize(
    ("score", "name"),
    [
        (1.1, "negligible"),
        (1.0, "negligible"),
        (0.9901, "negligible"),
        (0.99, "moderate"),
        (0.96, "moderate"),
        (0.9599, "significant"),
        (0.0, "significant"),
    ],
)
def test_classes_begin_and_end_at_one_and_four_percent(
    sql_store, planned, lease, build, score, name
):
    build.run(sql_store, lease, planned["fp"], value=1.0)
    build.run(sql_store, lease, planned["rtn"], value=score)
    assert _board(sql_store)["rtn"]["degradation"] == name


def test_a_trial_without_its_baseline_says_so(sql_store, planned, lease, build):
    build.run(sql_store, lease, planned["rtn"])
    row = _board(sql_store)["rtn"]
    assert (row["score_mean"], row["delta"], row["degradation"]) == (0.5, None, None)
    assert row["note"] == "the full-precision trial has no score"


def test_a_baseline_of_another_seed_is_no_baseline(sql_store, build):
    specs = build.spec("fp", seed=1), build.spec("rtn", seed=0)
    sql_store.plan_sweep("demo", "", build.planned(*specs))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    for row in sql_store.trials(1):
        build.run(sql_store, lease, row)
    row = _board(sql_store)["rtn"]
    assert row["note"] == "no full-precision trial of this model and seed"


def test_an_unfinished_trial_has_no_mean_but_its_results_show(sql_store, planned, lease, build):
    claim = sql_store.claim(lease, planned["fp"].id, "c", build.host)
    sql_store.commit_unit(claim, build.result(Unit(kind="evaluate", task="math")))
    row = _board(sql_store)["fp"]
    assert (row["score_mean"], row["place"], row["note"]) == (None, None, "not finished")
    assert (row["tasks_done"], row["tasks"]) == (1, 2)
    shown = sql_store.query("SELECT task, metric, value, state FROM results WHERE is_primary")
    assert shown.rows == (("math", "acc", 0.5, "RUNNING"),)


@pytest.mark.parametrize(
    ("value", "flag"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")]
)
def test_a_score_that_is_no_number_is_flagged_and_wins_nothing(
    sql_store, planned, lease, build, value, flag
):
    build.run(sql_store, lease, planned["fp"])
    build.run(sql_store, lease, planned["rtn"], value=value)
    row = _board(sql_store)["rtn"]
    assert (row["score_mean"], row["place"]) == (None, None)
    assert row["note"] == "a score is not a finite number"
    shown = sql_store.query(
        "SELECT DISTINCT value, value_flag FROM results WHERE method = 'rtn' AND is_primary"
    )
    assert shown.rows == ((None, flag),)


def test_a_score_that_is_better_when_lower_gets_no_class(sql_store, planned, lease, build):
    for method in ("fp", "rtn"):
        claim = sql_store.claim(lease, planned[method].id, method, build.host)
        for unit in claim.trial.units():
            result = build.result(unit)
            if unit.task:
                loss = Metric(
                    task=unit.task, name="nll", value=2.0, stderr=None, n=9, higher_is_better=False
                )
                result = UnitResult(unit=unit, wall_s=1.0, metrics=(loss,))
            sql_store.commit_unit(claim, result)
    row = _board(sql_store)["rtn"]
    assert (row["delta"], row["degradation"]) == (0.0, None)
    assert row["note"] == "a primary score is better when lower"


def test_superseded_results_are_out_of_sight(sql_store, planned, lease, build):
    claim = sql_store.claim(lease, planned["rtn"].id, "c", build.host)
    for unit in claim.trial.units()[:-1]:
        sql_store.commit_unit(claim, build.result(unit, "a", 0.9))
    sql_store.release_lease(lease)
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    build.run(sql_store, lease, planned["rtn"], digest="b", value=0.1)
    shown = sql_store.query("SELECT task, value FROM results WHERE is_primary ORDER BY task")
    assert shown.rows == (("code", 0.1), ("math", 0.1))
    assert sql_store.query("SELECT COUNT(*) FROM metric WHERE value = 0.9").rows == ((1,),)
    assert _board(sql_store)["rtn"]["score_mean"] == 0.1


def test_progress_counts_trials_units_and_the_time_left(sql_store, planned, lease, build):
    build.run(sql_store, lease, planned["fp"])
    claim = sql_store.claim(lease, planned["rtn"].id, "c", build.host)
    sql_store.commit_unit(claim, build.result(Unit(kind="quantize")))
    (row,) = sql_store.progress("demo").dicts()
    counts = {name: row[name] for name in ("pending", "running", "succeeded", "skipped", "failed")}
    assert counts == {"pending": 2, "running": 1, "succeeded": 1, "skipped": 1, "failed": 0}
    assert (row["trials"], row["units"], row["units_done"]) == (5, 15, 4)
    assert row["estimated_left_s"] == pytest.approx(40 * 3 / 4 + 2 * 40)


def test_a_failure_shows_with_its_reason(sql_store, planned, lease, build):
    claim = sql_store.claim(lease, planned["rtn"].id, "c", build.host)
    sql_store.end_attempt(claim, build.failure(), log_path="logs/x.log")
    (row,) = sql_store.query("SELECT * FROM failures").dicts()
    assert (row["end_reason"], row["error_type"], row["unit"]) == (
        "ERROR",
        "ValueError",
        "quantize",
    )
    assert (row["state"], row["attempt"], row["log_path"]) == ("FAILED", 1, "logs/x.log")
    assert _board(sql_store)["rtn"]["note"].startswith("FAILED: ERROR: ValueError: wrong shape")


def test_the_top_outliers_are_the_greatest_of_each_statistic(sql_store, planned, lease, build):
    build.run(sql_store, lease, planned["fp"])
    shown = sql_store.query("SELECT place, element, value FROM outliers_top ORDER BY place")
    assert len(shown.rows) == TOP_OUTLIERS
    assert shown.rows[:2] == ((1, 0, 100.0), (2, 3, 99.0))


def test_the_leaderboard_comes_as_an_arrow_table(sql_store, planned, lease, build):
    assert sql_store.leaderboard("nothing").num_rows == 0
    build.run(sql_store, lease, planned["fp"])
    table = sql_store.leaderboard()
    assert table.column_names == list(VIEWS["leaderboard"].columns)
    assert table.num_rows == 4


def test_a_trial_shows_everything_by_the_start_of_its_key(sql_store, planned, lease, build):
    build.run(sql_store, lease, planned["rtn"])
    detail = sql_store.trial_detail(planned["rtn"].key[:10])
    assert detail.spec == build.spec("rtn")
    assert detail.trial["state"] == TrialState.SUCCEEDED
    assert [row["state"] for row in detail.units.dicts()] == ["DONE"] * 4
    assert detail.attempts.dicts()[0]["versions"] == {"torch": "2.13"}
    assert detail.modules.dicts()[0]["modules"] == 1
    assert {len(t.rows) for t in (detail.costs, detail.artifacts)} == {1}
    assert len(detail.metrics.rows) == 4
