"""Two transactions at one trial at the same moment: one comes after the other, whole."""

import threading

import sqlalchemy as sa

from dllm_sweep.records import TrialState

EVENTS = "SELECT from_state, to_state FROM event ORDER BY id"


def test_a_trial_cancelled_in_the_middle_of_its_claim_has_one_story(sql_store, build):
    """The claim has written its line of history, and has not moved the trial yet."""
    store = sql_store
    sweep = store.plan_sweep("demo", "", build.planned(build.spec()))
    lease = store.take_lease("demo", build.holder, seconds=60)
    (row,) = store.trials(sweep.id)
    canceller = threading.Thread(target=lambda: store.cancel(sweep.id))

    def after(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO event") and canceller.ident is None:
            canceller.start()
            canceller.join(timeout=0.5)  # it has to wait for the claim

    sa.event.listen(store._engines.write, "after_cursor_execute", after)
    claim = store.claim(lease, row.id, "c", build.host)
    canceller.join()
    assert claim is not None
    assert store.trials(sweep.id)[0].state is TrialState.CANCELLED
    assert store.query(EVENTS).rows == (
        (None, "PENDING"),
        ("PENDING", "RUNNING"),
        ("RUNNING", "CANCELLED"),
    )
