"""A trial that has succeeded in another sweep of the store is not run again."""

from __future__ import annotations

import pytest

from dllm_sweep.records import TrialState

TABLES = ("metric", "module", "outlier", "cost", "artifact")


@pytest.fixture
def first(store, build):
    """A sweep whose baseline and rtn succeeded, with gptq still to do."""
    specs = build.spec("fp"), build.spec("rtn"), build.spec("gptq")
    sweep = store.plan_sweep("first", "", build.planned(*specs))
    lease = store.take_lease("first", build.holder, seconds=60)
    for trial in store.trials(sweep.id)[:2]:
        build.run(store, lease, trial, value=0.25)
    return sweep


def test_what_has_succeeded_elsewhere_is_taken_over(store, first, build):
    specs = build.spec("fp"), build.spec("rtn"), build.spec("gptq"), build.spec("awq")
    second = store.plan_sweep("second", "", build.planned(*specs))
    assert (first.reused, second.reused) == (0, 2)
    rows = {row.method: row for row in store.trials(second.id)}
    assert [rows[m].state for m in ("fp", "rtn")] == [TrialState.SUCCEEDED] * 2
    assert [rows[m].state for m in ("gptq", "awq")] == [TrialState.PENDING] * 2
    assert rows["rtn"].reason == "reused from sweep 'first'"
    assert (rows["rtn"].units, rows["rtn"].units_done, rows["rtn"].attempt) == (4, 4, 0)
    scores = [score for score in store.scores(second.id) if score.trial_id == rows["rtn"].id]
    assert [(score.task, score.value) for score in scores] == [("code", 0.25), ("math", 0.25)]


def test_planning_again_reuses_nothing_twice_and_says_the_same(store, first, build):
    plan = build.planned(build.spec("rtn"))
    assert store.plan_sweep("second", "", plan).reused == 1
    assert store.plan_sweep("second", "", plan).reused == 1
    assert store.sweep("second").reused == 1
    assert len(store.trials(store.sweep("second").id)) == 1


def test_a_fresh_plan_takes_nothing_over(store, first, build):
    second = store.plan_sweep("second", "", build.planned(build.spec("rtn")), reuse=False)
    assert second.reused == 0
    assert store.trials(second.id)[0].state is TrialState.PENDING


def test_a_trial_that_is_skipped_stays_skipped(store, first, build):
    second = store.plan_sweep("second", "", build.planned(build.spec("rtn"), skip="no such grid"))
    (row,) = store.trials(second.id)
    assert (row.state, row.reason, second.reused) == (TrialState.SKIPPED, "no such grid", 0)


def test_the_longer_plan_of_a_sweep_takes_over_what_is_new_in_it(store, first, build):
    store.plan_sweep("second", "", build.planned(build.spec("gptq")))
    longer = store.plan_sweep("second", "", build.planned(build.spec("gptq"), build.spec("rtn")))
    assert longer.reused == 1


def test_a_copy_of_a_copy_names_the_sweep_that_did_the_work(store, first, build):
    plan = build.planned(build.spec("rtn"))
    store.plan_sweep("second", "", plan)
    third = store.plan_sweep("third", "", plan)
    assert store.trials(third.id)[0].reason == "reused from sweep 'first'"


def test_a_reused_trial_is_never_claimed_and_teaches_no_costs(store, first, build):
    before = store.unit_times()
    second = store.plan_sweep("second", "", build.planned(build.spec("rtn")))
    lease = store.take_lease("second", build.holder, seconds=60)
    assert store.claim(lease, store.trials(second.id)[0].id, "c", build.host) is None
    assert store.units(second.id) == ()
    assert store.unit_times() == before


def test_every_result_is_copied_and_the_views_show_it(sql_store, build):
    specs = build.spec("fp"), build.spec("rtn")
    for name in ("first", "second"):
        sweep = sql_store.plan_sweep(name, "", build.planned(*specs))
        lease = sql_store.take_lease(name, build.holder, seconds=60)
        for trial in sql_store.trials(sweep.id):
            if trial.state is TrialState.PENDING:
                build.run(sql_store, lease, trial)
    for table in TABLES:
        count = f"SELECT COUNT(*) FROM {table} r JOIN trial t ON t.id = r.trial_id"
        counts = [
            sql_store.query(f"{count} WHERE t.sweep_id = ?", [number]).rows for number in (1, 2)
        ]
        assert counts[0] == counts[1]
        assert counts[0] > ((0,),)
    for view in ("results", "leaderboard"):
        shown = [
            [
                row | {"sweep": "", "reason": ""}
                for row in sql_store.query(f"SELECT * FROM {view} WHERE sweep = ?", [name]).dicts()
            ]
            for name in ("first", "second")
        ]
        key = repr
        assert sorted(shown[0], key=key) == sorted(shown[1], key=key)
    event = "SELECT from_state, to_state, actor, reason FROM event ORDER BY id DESC LIMIT 1"
    assert sql_store.query(event).rows == (
        (None, "SUCCEEDED", "planner", "reused from sweep 'first'"),
    )


def test_only_results_on_the_current_weights_are_copied(sql_store, build):
    sweep = sql_store.plan_sweep("first", "", build.planned(build.spec("rtn")))
    lease = sql_store.take_lease("first", build.holder, seconds=60)
    (trial,) = sql_store.trials(sweep.id)
    claim = sql_store.claim(lease, trial.id, "c", build.host)
    for unit in claim.units[:-1]:
        sql_store.commit_unit(claim, build.result(unit, "a", 0.75))
    sql_store.release_lease(lease)
    lease = sql_store.take_lease("first", build.holder, seconds=60)
    build.run(sql_store, lease, trial, digest="b", value=0.25)
    second = sql_store.plan_sweep("second", "", build.planned(build.spec("rtn")))
    assert {score.value for score in sql_store.scores(second.id)} == {0.25}
    kept = "SELECT DISTINCT u.generation FROM unit u JOIN trial t ON t.id = u.trial_id"
    assert sql_store.query(f"{kept} WHERE t.sweep_id = ?", [second.id]).rows == ((0,),)
