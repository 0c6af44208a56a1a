"""Random histories of controllers, workers and users: SQLite does what the model in memory does."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dllm_sweep.db.connect import open_store
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.db.transitions import RetryPolicy
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import EndReason, TrialState

POLICY = RetryPolicy(max_failures=1, max_lost=2, backoff_s=0.0, smallest_batch_scale=0.5)
"""Small budgets, so that short histories use them up, and no pauses."""
OVER = {TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED}
ENDS = [reason for reason in EndReason if reason is not EndReason.OK]


class Histories(RuleBasedStateMachine):
    """Two stores that get the same calls; old leases and claims stay in play as zombies."""

    build = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.sql = open_store(self.folder / "store.db", policy=POLICY)
        self.stores = (self.sql, MemoryStore(POLICY))
        specs = [self.build.spec("rtn"), self.build.spec("fp")]
        for store in self.stores:
            self.sweep = store.plan_sweep("demo", "", self.build.planned(*specs))
        self.rows = self.sql.trials(self.sweep.id)
        self.leases, self.claims, self.claimed = [], [], 0
        self.by_user = True

    def teardown(self) -> None:
        self.sql.close()
        shutil.rmtree(self.folder)

    def both(self, call):
        """Make the call on both stores and demand the same answer or the same kind of error."""
        before = self._digest()
        answers = [self._answer(call, store) for store in self.stores]
        assert answers[0] == answers[1]
        if isinstance(answers[0], type):
            assert self._digest() == before, "a refused call changed the store"
            return None
        return answers[0]

    @staticmethod
    def _answer(call, store):
        try:
            return call(store)
        except (Fenced, StoreError) as error:
            return type(error)

    def _digest(self):
        tables = ("trial", "unit", "attempt", "metric", "failure", "event", "artifact")
        return [self.sql.query(f"SELECT * FROM {table}").rows for table in tables]

    @rule(holder=st.sampled_from(["holder", "other"]))
    def take_over(self, holder):
        who = getattr(self.build, holder)
        lease = self.both(lambda s: s.take_lease("demo", who, seconds=60, takeover=True))
        self.leases.append(lease)

    @rule(data=st.data())
    def release(self, data):
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            self.both(lambda s: s.release_lease(lease))

    @rule(data=st.data(), again=st.booleans())
    def claim(self, data, again):
        if not self.leases:
            return
        self.claimed += not again
        name = f"claim {self.claimed}"
        lease = data.draw(st.sampled_from(self.leases[-2:]))
        row = data.draw(st.sampled_from(self.rows))
        claim = self.both(lambda s: s.claim(lease, row.id, name, self.build.host))
        if claim is not None:
            self.claims.append(claim)

    @rule(data=st.data(), digest=st.sampled_from("ab"))
    def commit(self, data, digest):
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims[-3:]))
            unit = data.draw(st.sampled_from(claim.trial.units()))
            result = self.build.result(unit, digest)
            self.both(lambda s: s.commit_unit(claim, result))

    @rule(data=st.data(), digest=st.sampled_from("ab"))
    def commit_all(self, data, digest):
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims[-3:]))
            for unit in claim.trial.units():
                result = self.build.result(unit, digest)
                self.both(lambda s, result=result: s.commit_unit(claim, result))

    @rule(data=st.data(), reason=st.sampled_from(ENDS), retryable=st.booleans())
    def end(self, data, reason, retryable):
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims[-3:]))
            failure = self.build.failure(reason, retryable=retryable)
            self.both(lambda s: s.end_attempt(claim, failure))

    @rule()
    def retry(self):
        self.by_user = True
        states = [TrialState.FAILED, TrialState.CANCELLED]
        self.both(lambda s: s.retry(self.sweep.id, states=states))

    @rule(data=st.data())
    def cancel(self, data):
        self.by_user = True
        key = data.draw(st.sampled_from(self.rows)).key
        self.both(lambda s: s.cancel(self.sweep.id, keys=[key]))

    @rule(paused=st.booleans())
    def pause(self, paused):
        self.both(lambda s: s.pause(self.sweep.id, paused))

    @invariant()
    def the_stores_agree_and_history_only_goes_on(self):
        seen = [[_visible(row) for row in s.trials(self.sweep.id)] for s in self.stores]
        assert seen[0] == seen[1]
        for old, new in zip(self.rows, self.sql.trials(self.sweep.id), strict=True):
            assert new.attempt >= old.attempt
            assert old.state not in OVER or new.state is old.state or self.by_user
        self.rows, self.by_user = self.sql.trials(self.sweep.id), False

    @invariant()
    def a_trial_has_one_live_attempt_exactly_while_it_runs(self):
        live = "SELECT trial_id, COUNT(*) FROM attempt WHERE ended_s IS NULL GROUP BY trial_id"
        rows = self.sql.trials(self.sweep.id)
        running = [row.id for row in rows if row.state is TrialState.RUNNING]
        assert sorted(self.sql.query(live).rows) == [(trial, 1) for trial in sorted(running)]

    @invariant()
    def success_means_all_units_done_on_one_set_of_weights(self):
        units = self.sql.query(
            "SELECT t.id, COUNT(DISTINCT u.weights_sha256), MIN(u.state), MAX(u.state)"
            " FROM trial t JOIN unit u ON u.trial_id = t.id AND u.generation = t.generation"
            " WHERE t.state = 'SUCCEEDED' GROUP BY t.id"
        )
        assert all(row[1] <= 1 and row[2] == row[3] == "DONE" for row in units.rows)

    @invariant()
    def the_audit_ends_in_the_present_state(self):
        last = "SELECT trial_id, to_state FROM event e WHERE id = (SELECT MAX(id) FROM event"
        last += " WHERE trial_id = e.trial_id) ORDER BY trial_id"
        present = sorted((row.id, str(row.state)) for row in self.sql.trials(self.sweep.id))
        assert list(self.sql.query(last).rows) == present


def _visible(row):
    return row.id, row.state, row.attempt, row.units, row.units_done


def test_sqlite_and_the_model_agree_on_random_histories(build):
    Histories.build = build
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
