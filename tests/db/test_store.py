"""What every store must do: the same tests on each kind."""

from __future__ import annotations

import dataclasses

import pytest

from dllm_sweep.errors import Fenced, InputError, LeaseHeld, StoreError, UnknownName
from dllm_sweep.records import EndReason, TrialState
from dllm_sweep.spec import Unit


def _trial(store, sweep, method="rtn"):
    return next(trial for trial in store.trials(sweep.id) if trial.method == method)


def _claimed(store, sweep, lease, build, method="rtn", claim_id="c1"):
    return store.claim(lease, _trial(store, sweep, method).id, claim_id, build.host)


def _commit_all(store, build, claim, digest="a"):
    states = [store.commit_unit(claim, build.result(u, digest)) for u in claim.trial.units()]
    return states[-1]


def test_planning_twice_adds_nothing(store, sweep, build):
    before = store.trials(sweep.id)
    again = store.plan_sweep("demo", "name: demo", build.planned(build.spec("rtn")))
    assert again.id == sweep.id
    assert [row.key for row in store.trials(sweep.id)] == [row.key for row in before]


def test_equal_trials_in_one_plan_are_stored_once(store, build):
    sweep = store.plan_sweep("twins", "", build.planned(build.spec(), build.spec()))
    assert len(store.trials(sweep.id)) == 1


def test_a_longer_plan_adds_only_what_is_new(store, sweep, build):
    store.plan_sweep("demo", "longer", build.planned(build.spec("rtn"), build.spec("awq")))
    assert [row.method for row in store.trials(sweep.id)] == ["fp", "rtn", "gptq", "awq"]
    assert store.sweep("demo").source == "longer"


def test_a_plan_with_the_same_data_elsewhere_moves_the_trials_that_wait(store, build):
    def placed(folder):
        spec = build.spec("fp")
        tasks = tuple(dataclasses.replace(task, data=folder) for task in spec.protocol.tasks)
        protocol = dataclasses.replace(spec.protocol, tasks=tasks)
        return build.planned(dataclasses.replace(spec, protocol=protocol))

    sweep = store.plan_sweep("moved", "", placed("/here"))
    store.plan_sweep("moved", "", placed("/there"))
    (trial,) = store.trials(sweep.id)
    lease = store.take_lease("moved", build.holder, seconds=60)
    claim = store.claim(lease, trial.id, "c1", build.host)
    assert {task.data for task in claim.trial.protocol.tasks} == {"/there"}


def test_trials_come_with_the_highest_priority_first(store, build):
    specs = build.spec("rtn"), build.spec("fp")
    sweep = store.plan_sweep("demo", "", build.planned(*specs))
    assert [row.method for row in store.trials(sweep.id)] == ["fp", "rtn"]


def test_without_a_name_the_sweep_launched_last_is_meant(store, sweep, build):
    store.plan_sweep("second", "", [])
    store.plan_sweep("demo", "", [])
    assert store.sweep(None).name == "demo"


def test_an_unknown_sweep_is_named_with_the_nearest(store, sweep):
    with pytest.raises(UnknownName, match="did you mean 'demo'"):
        store.sweep("dem")


def test_a_skipped_trial_says_why_and_is_never_claimed(store, build):
    sweep = store.plan_sweep("demo", "", build.planned(build.spec(), skip="no such grid"))
    lease = store.take_lease("demo", build.holder, seconds=60)
    row = store.trials(sweep.id)[0]
    assert (row.state, row.reason, row.units) == (TrialState.SKIPPED, "no such grid", 0)
    assert store.claim(lease, row.id, "c", build.host) is None


def test_a_second_controller_is_refused_by_name(store, sweep, lease, build):
    with pytest.raises(LeaseHeld, match="process 1 on here") as error:
        store.take_lease("demo", build.other, seconds=60)
    assert 0 < error.value.expires_in_s <= 60


def test_the_lease_of_one_that_is_dead_may_be_taken_but_nobody_elses(store, sweep, build):
    late = dataclasses.replace(build.holder, pid=3)
    store.take_lease("demo", build.holder, seconds=60)
    store.take_lease("demo", build.other, seconds=60, dead=build.holder)
    with pytest.raises(LeaseHeld, match=f"process {build.other.pid}"):
        store.take_lease("demo", late, seconds=60, dead=build.holder)


def test_a_lease_that_ran_out_may_be_taken(store, sweep, build):
    first = store.take_lease("demo", build.holder, seconds=-1)
    second = store.take_lease("demo", build.other, seconds=60)
    assert second.epoch > first.epoch


def test_a_takeover_loses_running_attempts_and_fences_the_old_controller(
    store, sweep, lease, build
):
    claim = _claimed(store, sweep, lease, build)
    new = store.take_lease("demo", build.other, seconds=60, takeover=True)
    assert _trial(store, sweep).state is TrialState.PENDING
    with pytest.raises(Fenced):
        store.renew_lease(lease, seconds=60)
    with pytest.raises(Fenced):
        store.claim(lease, claim.trial_id, "c2", build.host)
    with pytest.raises(Fenced):
        store.commit_unit(claim, build.result(Unit(kind="quantize")))
    with pytest.raises(Fenced):
        store.release_lease(lease)
    assert store.claim(new, claim.trial_id, "c3", build.host).attempt == claim.attempt + 1


def test_a_renewed_lease_still_keeps_others_out(store, sweep, build):
    lease = store.take_lease("demo", build.holder, seconds=-1)
    store.renew_lease(lease, seconds=60)
    with pytest.raises(LeaseHeld):
        store.take_lease("demo", build.other, seconds=60)


def test_a_released_lease_lets_the_next_controller_in_and_keeps_done_units(
    store, sweep, lease, build
):
    claim = _claimed(store, sweep, lease, build)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.release_lease(lease)
    row = _trial(store, sweep)
    assert (row.state, row.units_done) == (TrialState.PENDING, 1)
    lease = store.take_lease("demo", build.other, seconds=60)
    again = _claimed(store, sweep, lease, build, claim_id="c2")
    assert again.done == ("quantize",)
    assert again.weights.sha256 == "a" * 64


def test_nothing_can_be_claimed_under_a_released_lease(store, sweep, lease, build):
    store.release_lease(lease)
    with pytest.raises(Fenced):
        _claimed(store, sweep, lease, build)


def test_a_claim_carries_the_trial_as_it_was_planned(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    assert claim.trial == build.spec("rtn")
    assert (claim.attempt, claim.done, claim.weights, claim.batch_scale) == (1, (), None, 1.0)


def test_a_trial_is_claimed_once_and_the_same_claim_may_be_repeated(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    assert _claimed(store, sweep, lease, build) == claim
    assert _claimed(store, sweep, lease, build, claim_id="c2") is None


def test_a_trial_of_another_sweep_cannot_be_claimed(store, sweep, lease, build):
    other = store.plan_sweep("other", "", build.planned(build.spec("rtn")))
    assert store.claim(lease, store.trials(other.id)[0].id, "c", build.host) is None


def test_a_paused_sweep_hands_out_no_claims(store, sweep, lease, build):
    store.pause(sweep.id, True)
    assert store.sweep("demo").paused
    assert _claimed(store, sweep, lease, build) is None
    store.pause(sweep.id, False)
    assert _claimed(store, sweep, lease, build) is not None


def test_a_trial_succeeds_with_its_last_unit(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    *units, last = claim.trial.units()
    for unit in units:
        assert store.commit_unit(claim, build.result(unit)) is TrialState.RUNNING
    assert store.commit_unit(claim, build.result(last)) is TrialState.SUCCEEDED
    row = _trial(store, sweep)
    assert (row.state, row.units, row.units_done) == (TrialState.SUCCEEDED, 4, 4)


def test_every_commit_may_be_repeated(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    for unit in claim.trial.units():
        first = store.commit_unit(claim, build.result(unit))
        assert store.commit_unit(claim, build.result(unit)) is first


def test_a_commit_under_another_claim_id_is_fenced(store, sweep, lease, build):
    claim = dataclasses.replace(_claimed(store, sweep, lease, build), claim_id="stolen")
    with pytest.raises(Fenced):
        store.commit_unit(claim, build.result(Unit(kind="quantize")))
    assert _trial(store, sweep).units_done == 0


def test_a_unit_that_the_trial_does_not_have_is_refused(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build, "fp")
    with pytest.raises(StoreError, match="no unit quantize"):
        store.commit_unit(claim, build.result(Unit(kind="quantize")))


def test_nothing_can_be_measured_before_the_weights_are_known(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    with pytest.raises(StoreError, match="before quantize"):
        store.commit_unit(claim, build.result(Unit(kind="evaluate", task="math")))


def _quantized_and_released(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.commit_unit(claim, build.result(Unit(kind="evaluate", task="math")))
    store.release_lease(lease)
    lease = store.take_lease("demo", build.holder, seconds=60)
    return _claimed(store, sweep, lease, build, claim_id="c2")


def test_the_same_weights_made_again_keep_what_was_measured_on_them(store, sweep, lease, build):
    claim = _quantized_and_released(store, sweep, lease, build)
    store.commit_unit(claim, build.result(Unit(kind="quantize"), "a"))
    assert _trial(store, sweep).units_done == 2


def test_other_weights_supersede_what_was_measured_on_the_old_ones(store, sweep, lease, build):
    claim = _quantized_and_released(store, sweep, lease, build)
    store.commit_unit(claim, build.result(Unit(kind="quantize"), "b"))
    assert _trial(store, sweep).units_done == 1
    assert _commit_all(store, build, claim, "b") is TrialState.SUCCEEDED


def test_other_weights_in_the_same_attempt_supersede_too(store, sweep, lease, build):
    """The file of the first weights was lost, and the method gives others each time."""
    claim = _claimed(store, sweep, lease, build)
    units = claim.units
    store.commit_unit(claim, build.result(units[0], "a"))
    store.commit_unit(claim, build.result(units[1], "a"))
    store.commit_unit(claim, build.result(units[0], "b"))
    assert _trial(store, sweep).units_done == 1
    store.commit_unit(claim, build.result(units[0], "b"))
    assert _trial(store, sweep).units_done == 1
    old = dataclasses.replace(build.result(units[1]), weights_sha256="a" * 64)
    with pytest.raises(Fenced):
        store.commit_unit(claim, old)
    assert _commit_all(store, build, claim, "b") is TrialState.SUCCEEDED


def test_an_error_that_stays_fails_the_trial_at_once(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    assert store.end_attempt(claim, build.failure()) is TrialState.FAILED
    assert _trial(store, sweep).reason == "ERROR: ValueError: wrong shape (in unit quantize)"


def test_an_error_that_may_pass_waits_before_it_is_tried_again(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    assert store.end_attempt(claim, build.failure(retryable=True)) is TrialState.PENDING
    assert 0 < _trial(store, sweep).ready_in_s <= 30
    assert _claimed(store, sweep, lease, build, claim_id="c2") is None


def test_ending_an_attempt_may_be_repeated(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    failure = build.failure(EndReason.GPU_OOM)
    assert store.end_attempt(claim, failure) is store.end_attempt(claim, failure)
    again = _claimed(store, sweep, lease, build, claim_id="c2")
    assert (again.attempt, again.batch_scale) == (2, 0.5)
    with pytest.raises(Fenced):
        store.end_attempt(claim, failure)


def test_an_attempt_cannot_end_as_ok_without_its_last_unit(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    with pytest.raises(StoreError, match="without its last unit"):
        store.end_attempt(claim, build.failure(EndReason.OK))
    assert _trial(store, sweep).state is TrialState.RUNNING


def test_gpu_memory_errors_halve_the_batch_until_it_cannot_be_smaller(store, sweep, lease, build):
    scales = []
    while claim := _claimed(store, sweep, lease, build, claim_id=f"c{len(scales)}"):
        scales.append(claim.batch_scale)
        store.end_attempt(claim, build.failure(EndReason.GPU_OOM))
    assert scales == [2.0**-k for k in range(7)]
    assert _trial(store, sweep).state is TrialState.FAILED


def test_a_retry_gives_fresh_budgets_and_keeps_done_units(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    store.commit_unit(claim, build.result(Unit(kind="quantize")))
    store.end_attempt(claim, build.failure())
    assert store.retry(sweep.id, states=[TrialState.FAILED]) == 1
    again = _claimed(store, sweep, lease, build, claim_id="c2")
    assert (again.attempt, again.done) == (2, ("quantize",))


def test_a_retry_keeps_to_the_reasons_and_keys_asked_for(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    store.end_attempt(claim, build.failure())
    failed = [TrialState.FAILED]
    assert store.retry(sweep.id, states=failed, reasons=["GPU_OOM"]) == 0
    assert store.retry(sweep.id, states=failed, keys=["not a key"]) == 0
    found = store.retry(sweep.id, states=failed, reasons=["ERROR"], keys=[claim.trial_key[:8]])
    assert found == 1


def test_a_trial_that_succeeded_cannot_be_retried(store, sweep):
    with pytest.raises(InputError, match="SUCCEEDED cannot be retried"):
        store.retry(sweep.id, states=[TrialState.SUCCEEDED])


def test_cancelling_fences_a_running_attempt_off(store, sweep, lease, build):
    claim = _claimed(store, sweep, lease, build)
    assert store.cancel(sweep.id, keys=[claim.trial_key]) == 1
    with pytest.raises(Fenced):
        store.commit_unit(claim, build.result(Unit(kind="quantize")))
    assert store.cancel(sweep.id) == 2
    assert {row.state for row in store.trials(sweep.id)} == {TrialState.CANCELLED}
