"""Racing gives trials up: never a baseline, never what is over, and a user may ask for it again."""

from __future__ import annotations

import pytest

from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import TrialState
from dllm_sweep.spec import Unit

EVIDENCE = "racing: math 0.02 +- 0.01 is below 0.4 after 120 items"


def _trial(store, sweep, method="rtn"):
    return next(trial for trial in store.trials(sweep.id) if trial.method == method)


def test_a_waiting_trial_is_pruned_with_its_evidence(store, sweep, lease, build):
    trial = _trial(store, sweep)
    assert store.prune(lease, trial.id, EVIDENCE)
    row = _trial(store, sweep)
    assert (row.state, row.reason) == (TrialState.PRUNED, EVIDENCE)
    assert store.claim(lease, trial.id, "c", build.host) is None
    assert trial.id not in {unit.trial_id for unit in store.units(sweep.id)}


def test_pruning_fences_a_running_attempt_off(store, sweep, lease, build):
    claim = store.claim(lease, _trial(store, sweep).id, "c", build.host)
    assert store.prune(lease, claim.trial_id, EVIDENCE)
    for call in (
        lambda: store.commit_unit(claim, build.result(Unit(kind="quantize"))),
        lambda: store.beat(claim, "here:7"),
        lambda: store.end_attempt(claim, build.failure()),
    ):
        with pytest.raises(Fenced):
            call()


def test_pruning_may_be_repeated_and_says_the_same(store, sweep, lease):
    trial = _trial(store, sweep)
    assert store.prune(lease, trial.id, EVIDENCE)
    assert store.prune(lease, trial.id, EVIDENCE)
    assert not store.prune(lease, trial.id, "something else")


def test_a_trial_that_is_over_is_not_pruned(store, sweep, lease, build):
    build.run(store, lease, _trial(store, sweep))
    assert not store.prune(lease, _trial(store, sweep).id, EVIDENCE)
    assert _trial(store, sweep).state is TrialState.SUCCEEDED


def test_a_baseline_is_never_pruned(store, sweep, lease):
    with pytest.raises(StoreError, match="is a baseline"):
        store.prune(lease, _trial(store, sweep, "fp").id, EVIDENCE)
    assert _trial(store, sweep, "fp").state is TrialState.PENDING


def test_only_the_present_controller_prunes_and_only_its_own_trials(store, sweep, lease, build):
    other = store.plan_sweep("other", "", build.planned(build.spec("rtn")))
    assert not store.prune(lease, store.trials(other.id)[0].id, EVIDENCE)
    assert not store.prune(lease, 10**6, EVIDENCE)
    store.take_lease("demo", build.other, seconds=60, takeover=True)
    with pytest.raises(Fenced):
        store.prune(lease, _trial(store, sweep).id, EVIDENCE)


def test_a_retry_brings_a_pruned_trial_back_with_its_units(store, sweep, lease, build):
    claim = store.claim(lease, _trial(store, sweep).id, "c", build.host)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.prune(lease, claim.trial_id, EVIDENCE)
    assert store.retry(sweep.id, states=[TrialState.PRUNED]) == 1
    again = store.claim(lease, claim.trial_id, "c2", build.host)
    assert (again.attempt, again.done) == (2, ("quantize",))
