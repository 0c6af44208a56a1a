"""What the controller reads: trials, units, times and scores."""

from __future__ import annotations

from collections import Counter

from dllm_sweep.db.board import NEWEST_TIMES
from dllm_sweep.records import Score, TrialState, UnitStanding, UnitTime
from dllm_sweep.spec import Unit


def _trial(store, sweep, method):
    return next(trial for trial in store.trials(sweep.id) if trial.method == method)


def test_a_trial_says_its_scheme_and_whether_it_is_a_baseline(store, sweep):
    rows = {row.method: (row.scheme, row.is_baseline) for row in store.trials(sweep.id)}
    assert rows == {
        "fp": ("w16a16", True),
        "rtn": ("w4a16-g128", False),
        "gptq": ("w4a16-g128", False),
    }


def test_units_come_in_the_order_in_which_they_run_with_even_estimates(store, sweep):
    found = store.units(sweep.id)
    ids = [row.id for row in store.trials(sweep.id)]
    assert [unit.trial_id for unit in found] == [ids[0]] * 3 + [ids[1]] * 4 + [ids[2]] * 4
    assert found[3] == UnitStanding(
        trial_id=ids[1], unit=Unit(kind="quantize"), estimated_s=10.0, done=False
    )
    assert {unit.estimated_s for unit in found[:3]} == {40.0 / 3}


def test_units_of_trials_that_are_over_are_left_out(store, sweep, lease, build):
    build.run(store, lease, _trial(store, sweep, "fp"))
    claim = store.claim(lease, _trial(store, sweep, "rtn").id, "c", build.host)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.cancel(sweep.id, keys=[_trial(store, sweep, "gptq").key])
    found = store.units(sweep.id)
    assert {unit.trial_id for unit in found} == {claim.trial_id}
    assert [unit.done for unit in found] == [True, False, False, False]


def test_times_are_those_of_committed_units_oldest_first(store, sweep, lease, build):
    claim = store.claim(lease, _trial(store, sweep, "rtn").id, "c", build.host)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.commit_unit(claim, build.scored(Unit(kind="evaluate", task="math"), [0.0, 1.0]))
    first, second = store.unit_times()
    assert (first.kind, first.wall_s, first.device) == ("quantize", 2.0, "")
    assert second == UnitTime(
        model="tiny",
        method="rtn",
        scheme="w4a16-g128",
        kind="evaluate",
        task="math",
        device="cpu",
        estimated_s=10.0,
        wall_s=3.0,
    )


def test_only_the_newest_times_of_units_alike_are_told(store, build):
    specs = [build.spec("rtn", seed=seed) for seed in range(NEWEST_TIMES + 2)]
    planned = store.plan_sweep("long", "", build.planned(*specs))
    lease = store.take_lease("long", build.holder, seconds=600)
    for trial in store.trials(planned.id):
        build.run(store, lease, trial)
    found = Counter((time.kind, time.task) for time in store.unit_times())
    assert set(found.values()) == {NEWEST_TIMES}


def test_scores_are_the_primary_ones_of_the_current_weights(store, sweep, lease, build):
    claim = store.claim(lease, _trial(store, sweep, "rtn").id, "c", build.host)
    store.commit_unit(claim, build.result(Unit(kind="quantize"), "a"))
    for task in ("math", "code"):
        store.commit_unit(claim, build.result(Unit(kind="evaluate", task=task), value=0.25))
    found = [
        Score(
            trial_id=claim.trial_id,
            task=task,
            value=0.25,
            stderr=0.05,
            n=100,
            higher_is_better=True,
        )
        for task in ("code", "math")
    ]
    assert list(store.scores(sweep.id)) == found
    lease = store.take_lease("demo", build.holder, seconds=60)
    again = store.claim(lease, claim.trial_id, "c2", build.host)
    store.commit_unit(again, build.result(Unit(kind="quantize"), "b"))
    assert store.scores(sweep.id) == ()


def test_a_released_lease_may_be_released_again(store, sweep, lease, build):
    claim = store.claim(lease, _trial(store, sweep, "rtn").id, "c", build.host)
    store.release_lease(lease)
    store.release_lease(lease)
    assert _trial(store, sweep, "rtn").state is TrialState.PENDING
    again = store.take_lease("demo", build.other, seconds=60)
    assert store.claim(again, claim.trial_id, "c2", build.host).attempt == 2
