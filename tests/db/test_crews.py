"""Several workers at one trial: what each may do, and what the loss of one costs."""

from __future__ import annotations

import dataclasses

import pytest

from dllm_sweep.db.transitions import DEFAULT_POLICY
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import EndReason, TrialState
from dllm_sweep.spec import Unit

QUANTIZE, MATH = Unit(kind="quantize"), Unit(kind="evaluate", task="math")
CODE = Unit(kind="evaluate", task="code")
A, B = "a" * 64, "b" * 64


def _trial(store, sweep, method="rtn"):
    return next(trial for trial in store.trials(sweep.id) if trial.method == method)


@pytest.fixture
def claim(store, sweep, lease, build):
    """A claim on the trial of rtn."""
    return store.claim(lease, _trial(store, sweep).id, "c1", build.host)


def _quantize(store, build, claim, digest="a"):
    store.commit_unit(claim, build.result(QUANTIZE, digest))


def _measured_on(build, unit, weights, value=0.5):
    return dataclasses.replace(build.result(unit, value=value), weights_sha256=weights)


def test_the_first_commit_of_a_unit_stands(store, sweep, claim, build):
    _quantize(store, build, claim)
    store.commit_unit(claim, build.result(MATH, value=0.25))
    assert store.commit_unit(claim, build.result(MATH, value=0.75)) is TrialState.RUNNING
    (score,) = store.scores(sweep.id)
    assert score.value == 0.25


def test_workers_of_one_claim_finish_its_trial_together(store, sweep, claim, build):
    _quantize(store, build, claim)
    others = [unit for unit in claim.units if unit.kind != "quantize"]
    helper = dataclasses.replace(claim, done=("quantize",))
    states = [
        store.commit_unit((claim, helper)[number % 2], build.result(unit))
        for number, unit in enumerate(others)
    ]
    assert states[-1] is TrialState.SUCCEEDED


def test_what_was_measured_on_superseded_weights_is_fenced_off(store, sweep, lease, claim, build):
    _quantize(store, build, claim, "a")
    store.release_lease(lease)
    lease = store.take_lease("demo", build.holder, seconds=60)
    crew = store.claim(lease, claim.trial_id, "c2", build.host)
    _quantize(store, build, crew, "b")
    with pytest.raises(Fenced, match=r"measured on weights that have\s+been superseded"):
        store.commit_unit(crew, _measured_on(build, MATH, A))
    assert store.commit_unit(crew, _measured_on(build, CODE, B)) is TrialState.RUNNING
    assert [score.task for score in store.scores(sweep.id)] == ["code"]


def test_a_lost_worker_is_charged_and_the_attempt_goes_on(store, sweep, claim, build):
    _quantize(store, build, claim)
    lost = build.failure(EndReason.LOST)
    assert store.lose_worker(claim, lost, worker="2") is TrialState.RUNNING
    row = _trial(store, sweep)
    assert (row.state, row.attempt) == (TrialState.RUNNING, 1)
    assert row.reason.startswith("LOST: ValueError: wrong shape")
    assert store.commit_unit(claim, build.result(MATH)) is TrialState.RUNNING


def test_one_loss_is_charged_once_however_often_it_is_said(store, sweep, claim, build):
    lost = build.failure(EndReason.LOST)
    for _ in range(DEFAULT_POLICY.max_lost + 5):
        assert store.lose_worker(claim, lost, worker="2") is TrialState.RUNNING


def test_too_many_lost_workers_fail_the_trial(store, sweep, claim, build):
    lost = build.failure(EndReason.LOST)
    last = DEFAULT_POLICY.max_lost
    states = [store.lose_worker(claim, lost, worker=str(n)) for n in range(last + 1)]
    assert states == [TrialState.RUNNING] * last + [TrialState.FAILED]
    assert _trial(store, sweep).state is TrialState.FAILED
    assert store.lose_worker(claim, lost, worker=str(last)) is TrialState.FAILED
    for call in (
        lambda: store.lose_worker(claim, lost, worker="another"),
        lambda: store.commit_unit(claim, build.result(QUANTIZE)),
        lambda: store.end_attempt(claim, build.failure(EndReason.GPU_OOM)),
    ):
        with pytest.raises(Fenced):
            call()


def test_losses_of_workers_and_of_attempts_share_one_budget(store, sweep, lease, claim, build):
    lost = build.failure(EndReason.LOST)
    for number in range(DEFAULT_POLICY.max_lost):
        store.lose_worker(claim, lost, worker=str(number))
    assert store.end_attempt(claim, lost) is TrialState.FAILED


def test_a_preempted_worker_costs_nothing(store, sweep, claim, build):
    for number in range(DEFAULT_POLICY.max_lost + 5):
        lost = build.failure(EndReason.PREEMPTED)
        assert store.lose_worker(claim, lost, worker=str(number)) is TrialState.RUNNING


def test_a_worker_cannot_be_lost_as_ok(store, claim, build):
    with pytest.raises(StoreError, match="cannot be lost as OK"):
        store.lose_worker(claim, build.failure(EndReason.OK), worker="2")


def test_every_loss_is_kept_beside_the_failure_that_ends_the_attempt(sql_store, build):
    sweep = sql_store.plan_sweep("demo", "", build.planned(build.spec()))
    lease = sql_store.take_lease("demo", build.holder, seconds=60)
    claim = sql_store.claim(lease, sql_store.trials(sweep.id)[0].id, "c", build.host)
    sql_store.lose_worker(claim, build.failure(EndReason.LOST), worker="2")
    sql_store.lose_worker(claim, build.failure(EndReason.PREEMPTED), worker="3")
    sql_store.end_attempt(claim, build.failure(EndReason.ERROR))
    kept = sql_store.query("SELECT worker, reason FROM failure ORDER BY worker")
    assert kept.rows == (("", "ERROR"), ("2", "LOST"), ("3", "PREEMPTED"))
    events = sql_store.query("SELECT from_state, to_state FROM event ORDER BY id")
    assert events.rows[2:] == (("RUNNING", "RUNNING"),) * 2 + (("RUNNING", "FAILED"),)


def test_text_that_a_database_cannot_keep_is_kept_in_part(store, sweep, claim, build):
    odd = dataclasses.replace(build.failure(), message="a\0b\ud800", log_tail="\0")
    store.beat(claim, "here:7", "x\0y\ud800z")
    assert store.end_attempt(claim, odd) is TrialState.FAILED
    assert _trial(store, sweep).reason.startswith("ERROR: ValueError: a")
    assert store.logs(claim.trial_id)[0].text == "x\N{REPLACEMENT CHARACTER}y?z"
