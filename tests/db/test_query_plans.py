"""The controller's reads and claims find their rows by index: they stay fast on a great store."""

from __future__ import annotations

import re

import pytest
import sqlalchemy as sa

from dllm_sweep.records import PlannedTrial

TRIALS, SWEEPS = 10_000, 4
SCANNED = {
    "sqlite": re.compile(r"^SCAN (?:\w+ AS )?(\w+)(?! USING)"),
    "postgresql": re.compile(r"Seq Scan on (\w+)"),
}
GREAT = {"unit", "metric", "trial", "attempt", "event"}


@pytest.fixture
def great(sql_store, build):
    """Four sweeps of 10,000 trials in all, half of the first sweep succeeded."""
    for number in range(SWEEPS):
        plan = [
            PlannedTrial(spec=build.spec(seed=number * TRIALS + seed), label="", estimated_s=1.0)
            for seed in range(TRIALS // SWEEPS)
        ]
        sql_store.plan_sweep(f"sweep {number}", "", plan)
    fill = (
        "UPDATE trial SET state = 'SUCCEEDED' WHERE sweep_id <> 1 OR id > 1000",
        "INSERT INTO metric (trial_id, generation, unit_key, task, name, value, n,"
        " higher_is_better, is_primary) SELECT trial_id, generation, unit_key, task, 'acc', 0.5,"
        " 9, true, true FROM unit WHERE kind = 'evaluate'",
        "INSERT INTO attempt (trial_id, attempt, epoch, claim_id, host, pid, device, versions,"
        " batch_scale, started_s, ended_s) SELECT id, 0, 1, 'c', 'here', 7, 'cpu', '{}', 1, 1, 2"
        " FROM trial",
        "ANALYZE",
    )
    with sql_store._engines.write.begin() as connection:
        for statement in fill:
            connection.exec_driver_sql(statement)
    return sql_store


def _statements(store, call):
    """What `call` asks the database, with its parameters."""
    asked = []

    def listen(connection, cursor, statement, parameters, context, executemany):
        asked.append((statement, parameters))

    engines = store._engines.read, store._engines.write
    for engine in engines:
        sa.event.listen(engine, "before_cursor_execute", listen)
    try:
        call()
    finally:
        for engine in engines:
            sa.event.remove(engine, "before_cursor_execute", listen)
    return [(sql, given) for sql, given in asked if sql.startswith(("SELECT", "UPDATE", "INSERT"))]


def _plan(store, sql, parameters, *, whole_sweep):
    sqlite = store._engines.read.dialect.name == "sqlite"
    explain = "EXPLAIN QUERY PLAN " if sqlite else "EXPLAIN "
    with store._engines.write.begin() as connection:
        if whole_sweep and not sqlite:
            # A quarter of a table is rightly read by a scan: ask whether there is another way.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        rows = connection.exec_driver_sql(explain + sql, parameters).fetchall()
    return [str(row[-1]).strip() for row in rows]


def _read_whole(store, call, *, whole_sweep=False):
    """The great tables that a call's statements read from one end to the other."""
    pattern = SCANNED[store._engines.read.dialect.name]
    lines = [
        line
        for sql, given in _statements(store, call)
        for line in _plan(store, sql, given, whole_sweep=whole_sweep)
    ]
    found = {match[1] for line in lines if (match := pattern.search(line))}
    assert lines
    return found & GREAT


def test_no_verb_of_the_controller_reads_a_great_table_from_end_to_end(great, build):
    sweep = great.sweep("sweep 0")
    lease = great.take_lease("sweep 0", build.holder, seconds=60)
    trial, other = [row for row in great.trials(sweep.id) if row.state == "PENDING"][:2]
    claim = great.claim(lease, trial.id, "c", build.host)
    great.beat(claim, "here:7", "text", number=1)
    calls = {
        "logs": lambda: great.logs(trial.id),
        "claim": lambda: great.claim(lease, other.id, "c2", build.host),
        "beat": lambda: great.beat(claim, "here:7", "text", number=2),
        "commit": lambda: great.commit_unit(claim, build.result(claim.units[0])),
        "end": lambda: great.end_attempt(claim, build.failure()),
        "prune": lambda: great.prune(lease, other.id, "beaten"),
        "take_lease": lambda: great.take_lease("sweep 0", build.holder, seconds=60),
    }
    found = {name: _read_whole(great, call) for name, call in calls.items()}
    assert found == {name: set() for name in calls}
    calls = {
        "trials": lambda: great.trials(sweep.id),
        "units": lambda: great.units(sweep.id),
        "scores": lambda: great.scores(sweep.id),
        "plan": lambda: great.plan_sweep("sweep 0", "", build.planned(build.spec(seed=5))),
    }
    found = {name: _read_whole(great, call, whole_sweep=True) for name, call in calls.items()}
    assert found == {name: set() for name in calls}
