"""Random histories of controllers, workers and users: both databases do what the model does."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from dllm_sweep.db.connect import open_store
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.db.schema import Base
from dllm_sweep.db.transitions import RetryPolicy
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import EndReason, TrialState

POLICY = RetryPolicy(max_failures=1, max_lost=2, backoff_s=0.0, smallest_batch_scale=0.5)
"""Small budgets, so that short histories use them up, and no pauses."""
OVER = {TrialState.SUCCEEDED, TrialState.FAILED, TrialState.CANCELLED, TrialState.PRUNED}
ENDS = [reason for reason in EndReason if reason is not EndReason.OK]
DIGESTS = st.sampled_from("ab")
MEASURED_ON = st.sampled_from([None, None, "a" * 64, "b" * 64])
COUNTED = ("metric", "shard_score", "attempt", "failure", "event", "artifact", "log_chunk")
SCORES = [0.1, 0.7, 0.3, 1e-17, 1.0]
KEPT = {"degradation_class"}
RECENT = slice(-3, None)
"""Of all leases and claims, the newest and a few zombies are tried."""


def empty(store) -> None:
    """Delete all rows of a store on Postgres, so that it is as new."""
    tables = ", ".join(sorted(set(Base.metadata.tables) - KEPT))
    with store._engines.write.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")


class Histories(RuleBasedStateMachine):
    """Three stores that get the same calls; old leases and claims stay in play as zombies."""

    build = None
    postgres = None

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.sqlite = open_store(self.folder / "store.db", policy=POLICY)
        empty(self.postgres)
        self.memory = MemoryStore(POLICY)
        self.sql = (self.sqlite, self.postgres)
        self.stores = (*self.sql, self.memory)
        cut, whole = self.build.spec("rtn"), self.build.spec("fp")
        plan = [self.build.in_shards(cut, 2), *self.build.planned(whole)]
        self.sweeps = [
            self.all(lambda s: s.plan_sweep("demo", "", plan)),
            self.all(lambda s: s.plan_sweep("second", "", [])),
        ]
        self.rows = self._rows(self.sqlite)
        self.leases, self.claims, self.claimed, self.pieces = [], [], 0, 0
        self.by_user = True

    @initialize(done=st.lists(st.integers(0, 5), min_size=1, max_size=2))
    def begin_in_the_middle(self, done):
        """Histories that begin with nothing done seldom come to where it matters."""
        for count in done:
            self.claimed += 1
            self._take("demo", self.build.holder, takeover=False, seconds=600.0)
            self._claim_row(self.rows[1])
            claim = self.claims[-1]
            for unit in claim.units[:count]:
                self._commit(claim, unit, "a", None)

    def teardown(self) -> None:
        self.sqlite.close()
        shutil.rmtree(self.folder)

    def all(self, call):
        """Make the call on all stores and demand the same answer or the same kind of error."""
        before = [self._digest(store) for store in self.sql]
        answers = [self._answer(call, store) for store in self.stores]
        assert answers[0] == answers[-1], "SQLite and the model differ"
        assert answers[1] == answers[-1], "Postgres and the model differ"
        if isinstance(answers[0], type):
            after = [self._digest(store) for store in self.sql]
            assert after == before, "a refused call changed the store"
            return None
        return answers[0]

    @staticmethod
    def _answer(call, store):
        try:
            return call(store)
        except (Fenced, StoreError) as error:
            return type(error)

    @staticmethod
    def _digest(store):
        counts = ", ".join(f"(SELECT COUNT(*) FROM {table})" for table in COUNTED)
        states = ("SELECT * FROM trial", "SELECT * FROM unit", f"SELECT {counts}")
        return [sorted(map(repr, store.query(sql).rows)) for sql in states]

    def _rows(self, store):
        return [row for sweep in self.sweeps for row in store.trials(sweep.id)]

    def _claim(self, data):
        return data.draw(st.sampled_from(self.claims[RECENT])) if self.claims else None

    def _lease(self, data):
        return data.draw(st.sampled_from(self.leases[RECENT])) if self.leases else None

    @rule(method=st.sampled_from(["rtn", "gptq", "fp"]), reuse=st.booleans())
    def plan_more(self, method, reuse):
        plan = self.build.planned(self.build.spec(method))
        self.all(lambda s: s.plan_sweep("second", "more", plan, reuse=reuse))

    @rule(
        sweep=st.sampled_from(["demo", "demo", "second"]),
        holder=st.sampled_from(["holder", "other"]),
        dead=st.sampled_from([None, "holder", "other"]),
        takeover=st.booleans(),
        seconds=st.sampled_from([-1.0, 600.0]),
    )
    def take_lease(self, sweep, holder, dead, takeover, seconds):
        known = dead and getattr(self.build, dead)
        who = getattr(self.build, holder)
        self._take(sweep, who, takeover=takeover, dead=known, seconds=seconds)

    def _take(self, sweep, who, **options):
        lease = self.all(lambda s: s.take_lease(sweep, who, **options))
        if lease is not None:
            self.leases.append(lease)

    @rule(data=st.data(), again=st.booleans())
    def release(self, data, again):
        if lease := self._lease(data):
            self.all(lambda s: s.release_lease(lease))
            if again:
                self.all(lambda s: s.release_lease(lease))

    @rule(data=st.data())
    def renew(self, data):
        if lease := self._lease(data):
            self.all(lambda s: s.renew_lease(lease, seconds=600.0))

    @rule(data=st.data(), again=st.booleans())
    def claim(self, data, again):
        self.claimed += not again
        self._claim_row(data.draw(st.sampled_from(self.rows)))

    def _claim_row(self, row):
        name, lease = f"claim {self.claimed}", self.leases[-1]
        claim = self.all(lambda s: s.claim(lease, row.id, name, self.build.host))
        if claim is not None:
            self.claims.append(claim)

    @rule(data=st.data(), digest=DIGESTS, weights=MEASURED_ON)
    def commit(self, data, digest, weights):
        if claim := self._claim(data):
            unit = data.draw(st.sampled_from(claim.units))
            self._commit(claim, unit, digest, weights)

    @rule(data=st.data(), digest=DIGESTS, backwards=st.booleans())
    def commit_all(self, data, digest, backwards):
        if claim := self._claim(data):
            first, *others = claim.units
            for unit in (first, *(others[::-1] if backwards else others)):
                self._commit(claim, unit, digest, None)

    @rule(row=st.integers(0, 1), digest=DIGESTS, again=st.booleans())
    def run_whole(self, row, digest, again):
        """A trial runs to its end, maybe on weights made anew: chance alone comes there seldom."""
        self.claimed, known = self.claimed + 1, len(self.claims)
        self.all(lambda s: s.pause(self.sweeps[0].id, False))
        self._take("demo", self.build.holder, takeover=True, seconds=600.0)
        self._claim_row(self.rows[row])
        for claim in self.claims[known:]:
            if again:
                for unit in claim.units[:2]:
                    self._commit(claim, unit, "b" if digest == "a" else "a", None)
            for unit in claim.units:
                self._commit(claim, unit, digest, None)

    def _commit(self, claim, unit, digest, weights):
        if unit.shards > 1:
            result = self.build.scored(unit, SCORES)
        else:
            result = self.build.result(unit, digest)
        result = dataclasses.replace(result, weights_sha256=weights)
        self.all(lambda s: s.commit_unit(claim, result))

    @rule(data=st.data(), reason=st.sampled_from(ENDS), retryable=st.booleans())
    def end(self, data, reason, retryable):
        if claim := self._claim(data):
            failure = self.build.failure(reason, retryable=retryable)
            self.all(lambda s: s.end_attempt(claim, failure))

    @rule(data=st.data(), reason=st.sampled_from(ENDS), worker=st.sampled_from("123"))
    def lose_worker(self, data, reason, worker):
        if claim := self._claim(data):
            failure = self.build.failure(reason)
            self.all(lambda s: s.lose_worker(claim, failure, worker=worker))

    @rule(data=st.data(), again=st.booleans())
    def beat(self, data, again):
        if claim := self._claim(data):
            self.pieces += not again
            number = max(self.pieces, 1)
            self.all(lambda s: s.beat(claim, "here:7", f"piece {number}\n", number=number))
            self.all(lambda s: [(c.attempt, c.text) for c in s.logs(claim.trial_id)])

    @rule(data=st.data(), evidence=st.sampled_from(["beaten", "beaten badly"]))
    def prune(self, data, evidence):
        if lease := self._lease(data):
            row = data.draw(st.sampled_from(self.rows))
            self.all(lambda s: s.prune(lease, row.id, evidence))

    @rule(data=st.data())
    def retry(self, data):
        self.by_user = True
        states = [TrialState.FAILED, TrialState.CANCELLED, TrialState.PRUNED]
        sweep = data.draw(st.sampled_from(self.sweeps))
        self.all(lambda s: s.retry(sweep.id, states=states))

    @rule(data=st.data())
    def cancel(self, data):
        self.by_user = True
        key = data.draw(st.sampled_from(self.rows)).key
        self.all(lambda s: s.cancel(self.sweeps[0].id, keys=[key]))

    @rule(paused=st.booleans())
    def pause(self, paused):
        self.all(lambda s: s.pause(self.sweeps[0].id, paused))

    @invariant()
    def all_that_must_hold_holds(self):
        seen = [self._rows(store) for store in self.stores]
        shown = [[_visible(row) for row in rows] for rows in seen]
        assert shown[0] == shown[1] == shown[2]
        self._history_only_goes_on(seen[0])
        self._the_controller_reads_the_same_from_all()
        for store, rows in zip(self.sql, seen, strict=False):
            self._the_scores_that_show_are_those_of_wholly_committed_tasks(store)
            self._a_trial_has_one_live_attempt_exactly_while_it_runs(store, rows)
            self._success_means_all_units_done_on_one_set_of_weights(store, rows)
            self._the_audit_ends_in_the_present_state(store, rows)

    def _history_only_goes_on(self, rows):
        new = {row.id: row for row in rows}
        for old in self.rows:
            assert new[old.id].attempt >= old.attempt
            assert old.state not in OVER or new[old.id].state is old.state or self.by_user
        self.rows, self.by_user = rows, False

    def _the_controller_reads_the_same_from_all(self):
        for sweep in self.sweeps:
            for read in ("units", "scores"):
                found = [getattr(store, read)(sweep.id) for store in self.stores]
                assert found[0] == found[1] == found[2]
        times = [sorted(map(repr, store.unit_times())) for store in self.stores]
        assert times[0] == times[1] == times[2]

    def _the_scores_that_show_are_those_of_wholly_committed_tasks(self, store):
        expected = sorted(
            (trial.id, metric.task, metric.name, metric.value, metric.stderr, metric.n)
            for trial in self.memory._trials.values()
            for metrics in trial.metrics.values()
            for metric in metrics
        )
        shown = store.query(
            "SELECT t.id, m.task, m.name, m.value, m.stderr, m.n FROM metric m"
            " JOIN trial t ON t.id = m.trial_id AND t.generation = m.generation"
        )
        assert sorted(tuple(row) for row in shown.rows) == expected

    def _a_trial_has_one_live_attempt_exactly_while_it_runs(self, store, rows):
        live = "SELECT trial_id, COUNT(*) FROM attempt WHERE ended_s IS NULL GROUP BY trial_id"
        running = sorted(row.id for row in rows if row.state is TrialState.RUNNING)
        assert sorted(store.query(live).rows) == [(trial, 1) for trial in running]

    def _success_means_all_units_done_on_one_set_of_weights(self, store, rows):
        found = store.query(
            "SELECT t.id, COUNT(DISTINCT u.weights_sha256), MIN(u.state), MAX(u.state)"
            " FROM trial t JOIN unit u ON u.trial_id = t.id AND u.generation = t.generation"
            " WHERE t.state = 'SUCCEEDED' GROUP BY t.id"
        ).rows
        assert all(row[1] <= 1 and row[2] == row[3] == "DONE" for row in found)
        succeeded = sorted(row.id for row in rows if row.state is TrialState.SUCCEEDED)
        assert sorted(row[0] for row in found) == succeeded

    def _the_audit_ends_in_the_present_state(self, store, rows):
        last = "SELECT trial_id, to_state FROM event e WHERE id = (SELECT MAX(id) FROM event"
        last += " WHERE trial_id = e.trial_id) ORDER BY trial_id"
        present = sorted((row.id, str(row.state)) for row in rows)
        assert [tuple(row) for row in store.query(last).rows] == present


def _visible(row):
    return dataclasses.replace(row, ready_in_s=0.0)


@pytest.fixture
def machine(build, postgres):
    with postgres.database() as url:
        Histories.build, Histories.postgres = build, open_store(url, policy=POLICY)
        yield Histories
        Histories.postgres.close()


def test_all_stores_agree_on_random_histories(machine):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=6,
            stateful_step_count=20,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
