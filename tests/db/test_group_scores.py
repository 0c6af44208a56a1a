"""The view of task groups: means of the same tasks are compared, and no others."""

from dataclasses import replace

import pytest

from dllm_sweep.db.views import VIEWS
from dllm_sweep.records import Metric, UnitResult
from dllm_sweep.spec import ProtocolSpec, TaskSpec
from dllm_sweep.task_groups import TASK_GROUPS

TASKS = ("arc_easy", "gsm8k", "lambada", "mbpp", "piqa")
PROTOCOL = ProtocolSpec(tasks=tuple(TaskSpec(name=name) for name in TASKS), outliers=None)


@pytest.fixture
def score(sql_store, build):
    """Commits scores by task for trials by method; gives the view's rows by method and group."""

    def commit(scores):
        specs = [replace(build.spec(method), protocol=PROTOCOL) for method in scores]
        sweep = sql_store.plan_sweep("demo", "", build.planned(*specs))
        lease = sql_store.take_lease("demo", build.holder, seconds=60)
        for row in sql_store.trials(sweep.id):
            claim = sql_store.claim(lease, row.id, f"c{row.id}", build.host)
            for unit in claim.units:
                if unit.kind == "quantize" or unit.task in scores[row.method]:
                    sql_store.commit_unit(claim, result(unit, scores[row.method], build))
        rows = sql_store.query("SELECT * FROM group_scores").dicts()
        return {(row["method"], row["task_group"]): row for row in rows}

    return commit


def result(unit, scores, build):
    if unit.kind == "quantize":
        return build.result(unit)
    metric = Metric(task=unit.task, name="acc", value=scores[unit.task], stderr=0.1, n=10)
    return UnitResult(unit=unit, wall_s=1.0, metrics=(metric,))


def test_the_table_has_the_groups_that_the_program_names(sql_store):
    rows = sql_store.query("SELECT name, task FROM task_group").rows
    assert set(rows) == {(name, task) for name, tasks in TASK_GROUPS.items() for task in tasks}
    assert (
        tuple(VIEWS["group_scores"].columns)
        == sql_store.query("SELECT * FROM group_scores").columns
    )


def test_a_group_is_the_mean_of_its_tasks_with_its_list_and_class(score):
    full = dict.fromkeys(TASKS, 0.8)
    rows = score({"fp": full, "rtn": full | {"piqa": 0.78, "mbpp": 0.4}})
    one = rows["rtn", "general"]
    assert (one["tasks"], one["tasks_done"], one["tasks_planned"]) == ("arc_easy, piqa", 2, 2)
    assert one["score_mean"] == pytest.approx(0.79)
    assert one["relative_drop_percent"] == pytest.approx(1.25)
    assert (one["degradation"], one["note"]) == ("moderate", "")
    assert rows["rtn", "math"]["degradation"] == "negligible"
    assert rows["rtn", "code"]["degradation"] == "significant"
    assert {group for _, group in rows} == {"general", "math", "code"}
    assert rows["fp", "general"]["degradation"] is None


def test_a_mean_over_fewer_tasks_is_not_compared_with_one_over_more(score):
    full = dict.fromkeys(TASKS, 0.8)
    rows = score({"fp": full, "rtn": {"piqa": 0.1, "gsm8k": 0.8}})
    one = rows["rtn", "general"]
    assert (one["tasks"], one["tasks_done"], one["tasks_planned"]) == ("piqa", 1, 2)
    assert (one["baseline_mean"], one["delta"], one["degradation"]) == (None, None, None)
    assert one["note"] == "full precision is over arc_easy, piqa"
    assert rows["rtn", "math"]["note"] == ""


def test_a_group_without_full_precision_says_so(score):
    rows = score({"rtn": {"piqa": 0.1}})
    assert rows["rtn", "general"]["note"] == "full precision has no score of this group"


def test_a_group_of_ones_own_is_a_row_of_the_table(sql_store, score):
    with sql_store._engines.write.begin() as connection:
        connection.exec_driver_sql("INSERT INTO task_group VALUES ('lambada', 'words')")
    rows = score({"fp": dict.fromkeys(TASKS, 0.5)})
    assert rows["fp", "words"]["tasks"] == "lambada"
