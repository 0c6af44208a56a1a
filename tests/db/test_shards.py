"""A task that is cut into shards gives the very scores of the uncut task, once all are there."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dllm_sweep.db.shards import merge
from dllm_sweep.errors import StoreError
from dllm_sweep.records import Metric, TrialState, UnitResult
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally

SCORES = [0.1, 0.7, 1.0, 0.3, 1e-17, 0.0, 1.0, 0.25, 0.9, 0.1, 0.2]


def _claimed(store, build, plan, sweep="demo"):
    row = store.plan_sweep(sweep, "", [plan], reuse=False)
    lease = store.take_lease(sweep, build.holder, seconds=60)
    (trial,) = store.trials(row.id)
    return row, store.claim(lease, trial.id, "c", build.host)


def _run(store, build, claim, scores, *, backwards=False):
    """Commit all units of a claim; returns the trial's state after each."""
    measured = [unit for unit in claim.units if unit.kind != "quantize"]
    order = [unit for unit in claim.units if unit.kind == "quantize"]
    order += measured[::-1] if backwards else measured
    return [
        store.commit_unit(
            claim,
            build.scored(unit, scores) if unit.kind == "evaluate" else build.result(unit),
        )
        for unit in order
    ]


def test_a_claim_carries_the_shards_in_the_order_in_which_they_run(store, build):
    plan = build.in_shards(build.spec("rtn"), 3)
    _, claim = _claimed(store, build, plan)
    assert claim.units == tuple(planned.unit for planned in plan.units)
    assert [unit.key for unit in claim.units][-3:] == [
        "evaluate:math:1/3",
        "evaluate:math:2/3",
        "evaluate:math:3/3",
    ]


def test_a_plan_without_units_stands_for_the_uncut_ones(store, build):
    _, claim = _claimed(store, build, build.planned(build.spec("rtn"))[0])
    assert claim.units == claim.trial.units()


@pytest.mark.parametrize(
    "change",
    [
        lambda units: units[:-1],
        lambda units: (*units, units[-1]),
        lambda units: units[1:],
        lambda units: tuple(
            dataclasses.replace(u, unit=dataclasses.replace(u.unit, shards=2)) for u in units
        ),
    ],
)
def test_units_that_are_not_the_trials_are_refused_and_nothing_is_planned(store, build, change):
    plan = build.in_shards(build.spec("rtn"), 3)
    wrong = dataclasses.replace(plan, units=change(plan.units))
    with pytest.raises(StoreError, match="planned units are not those of its specification"):
        store.plan_sweep("demo", "", [*build.planned(build.spec("awq")), wrong])
    sweep = store.plan_sweep("demo", "", [])
    assert store.trials(sweep.id) == ()


def test_no_score_of_a_task_shows_before_its_last_shard(store, build):
    sweep, claim = _claimed(store, build, build.in_shards(build.spec("fp"), 3))
    *shards, last = (unit for unit in claim.units if unit.task == "math")
    for unit in shards:
        store.commit_unit(claim, build.scored(unit, SCORES))
        assert store.scores(sweep.id) == ()
    store.commit_unit(claim, build.scored(last, SCORES))
    (score,) = store.scores(sweep.id)
    assert (score.task, score.n, score.value) == ("math", len(SCORES), Tally.of(SCORES).mean)
    assert score.stderr == Tally.of(SCORES).stderr


@pytest.mark.parametrize("backwards", [False, True])
def test_eight_shards_give_the_bits_of_one(store, build, backwards):
    found = []
    for number, shards in enumerate((1, 8)):
        plan = build.in_shards(build.spec("rtn"), shards)
        sweep, claim = _claimed(store, build, plan, f"sweep {number}")
        states = _run(store, build, claim, SCORES, backwards=backwards)
        assert states[-1] is TrialState.SUCCEEDED
        rows = [dataclasses.replace(score, trial_id=0) for score in store.scores(sweep.id)]
        found.append(rows)
    assert found[0] == found[1]


def test_the_results_of_shards_are_those_of_the_uncut_task(sql_store, build):
    shown = []
    for shards in (1, 8):
        plan = build.in_shards(build.spec("rtn"), shards)
        _, claim = _claimed(sql_store, build, plan, f"cut {shards}")
        _run(sql_store, build, claim, SCORES)
        rows = sql_store.query("SELECT * FROM results WHERE sweep = ?", [f"cut {shards}"]).dicts()
        shown.append([row | {"sweep": ""} for row in rows])
    assert shown[0] == shown[1]
    assert len(shown[0]) == 2


def test_a_shard_without_exact_sums_is_refused(store, build):
    sweep, claim = _claimed(store, build, build.in_shards(build.spec("fp"), 2))
    shard = next(unit for unit in claim.units if unit.shards > 1)
    with pytest.raises(StoreError, match="only tasks whose scores are means"):
        store.commit_unit(claim, build.result(shard))
    assert store.trials(sweep.id)[0].units_done == 0


def test_a_score_that_only_some_shards_have_is_refused(store, build):
    _, claim = _claimed(store, build, build.in_shards(build.spec("fp"), 2))
    first, second = (unit for unit in claim.units if unit.shards > 1)
    store.commit_unit(claim, build.scored(first, SCORES))
    with pytest.raises(StoreError, match="1 of 2 shards have the score acc"):
        store.commit_unit(claim, UnitResult(unit=second, wall_s=1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_shard_whose_score_is_no_number_makes_the_whole_one_none(store, build, value):
    sweep, claim = _claimed(store, build, build.in_shards(build.spec("fp"), 2))
    first, second = (unit for unit in claim.units if unit.shards > 1)
    wild = Metric(task="math", name="acc", value=value, stderr=None, n=4)
    store.commit_unit(claim, UnitResult(unit=first, wall_s=1.0, metrics=(wild,)))
    store.commit_unit(claim, build.scored(second, SCORES))
    (score,) = store.scores(sweep.id)
    assert (score.value, score.stderr, score.n) == (None, None, 4 + 6)


def test_other_weights_supersede_shards_and_their_merged_scores(store, build):
    sweep, claim = _claimed(store, build, build.in_shards(build.spec("rtn"), 2))
    _run(store, build, claim, SCORES)
    assert len(store.scores(sweep.id)) == 2
    second, claim = _claimed(store, build, build.in_shards(build.spec("awq"), 2), "other")
    shards = [unit for unit in claim.units if unit.shards > 1]
    store.commit_unit(claim, build.result(claim.units[0], "a"))
    for unit in shards:
        store.commit_unit(claim, build.scored(unit, SCORES))
    lease = store.take_lease("other", build.holder, seconds=60)
    again = store.claim(lease, claim.trial_id, "c2", build.host)
    assert again.done == ("quantize", "evaluate:math:1/2", "evaluate:math:2/2")
    store.commit_unit(again, build.result(claim.units[0], "b"))
    assert store.scores(second.id) == ()
    assert store.trials(second.id)[0].units_done == 1
    standing = {unit.unit: unit.estimated_s for unit in store.units(second.id)}
    assert standing == dict.fromkeys(claim.units, 5.0)
    assert _run(store, build, again, SCORES)[-1] is TrialState.SUCCEEDED


UNIT = Unit(kind="evaluate", task="math", shards=1)


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_any_cut_in_any_order_merges_to_the_same_bits(scores, shards, random):
    cuts = [
        scores[len(scores) * i // shards : len(scores) * (i + 1) // shards] for i in range(shards)
    ]
    parts = [
        Metric(task="math", name="acc", value=0.0, stderr=None, n=len(cut), tally=Tally.of(cut))
        for cut in cuts
    ]
    random.shuffle(parts)
    (whole,) = merge(dataclasses.replace(UNIT, shards=shards), parts)
    exact = Tally.of(scores)
    assert (whole.value, whole.stderr, whole.n) == (exact.mean, exact.stderr, len(scores))
