"""`leaderboard --by task-group`: means with their tasks, errors and losses."""

import csv
import io
import math

import pytest


def test_every_group_shows_its_tasks_and_the_loss_against_full_precision(run_json, run):
    rows = {
        (row["method"], row["task_group"]): row
        for row in run_json("leaderboard", "--by", "task-group")
    }
    assert {key: row["tasks"] for key, row in rows.items()} == {
        (method, group): task
        for method in ("fp", "rtn")
        for group, task in (("code", "tiny_code"), ("general", "tiny_facts"), ("math", "tiny_math"))
    }
    for group in ("code", "general", "math"):
        full, own = rows["fp", group]["score_mean"], rows["rtn", group]["score_mean"]
        drop = rows["rtn", group]["relative_drop_percent"]
        assert drop == pytest.approx(100 * (full - own) / full)
        assert (rows["rtn", group]["degradation"] == "significant") == (drop > 4)
    lines = run("leaderboard", "--by", "task-group").output.splitlines()
    assert lines[0].startswith("Sweep small, protocol ")
    assert sum("baseline" in line for line in lines) == 3


def test_the_error_of_a_mean_is_that_of_its_tasks(run_json, run):
    rows = list(
        csv.DictReader(
            io.StringIO(run("leaderboard", "--by", "task-group", "--format", "csv").output)
        )
    )
    stored = run_json("sql", "SELECT method, task, stderr FROM results WHERE is_primary")
    errors = {(row["method"], row["task"]): row["stderr"] for row in stored}
    for row in rows:
        each = [errors[row["method"], task] for task in row["tasks"].split(", ")]
        assert float(row["stderr"]) == pytest.approx(math.hypot(*each) / len(each))


def test_the_sql_behind_it_and_markdown_are_printed(run):
    assert "FROM group_scores" in run("leaderboard", "--by", "task-group", "--sql").output
    text = run("leaderboard", "--by", "task-group", "--format", "markdown").output
    assert "\n| llada-tiny | math | rtn |" in text
