"""What must never be found in a store, each as one SELECT that finds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep.db.upkeep import now_s

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that must not be.

    Attributes:
        name: What is wrong.
        advice: What to do.
        sql: A SELECT of (sweep, trial_key, label, detail); `?` stands for the time now.
    """

    name: str
    advice: str
    sql: str


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A trial that breaks a rule."""

    rule: Rule
    sweep: str
    trial_key: str
    label: str
    detail: str


_OF = "SELECT s.name, t.trial_key, t.label,"
_FROM = "FROM trial t JOIN sweep s ON s.id = t.sweep_id"
_UNITS = "unit u ON u.trial_id = t.id AND u.generation = t.generation"
_NOT_OURS = "no run of this program writes this: restore a copy of the store, and report it"

RULES = (
    Rule(
        name="succeeded with units not done",
        advice=_NOT_OURS,
        sql=f"""{_OF} u.unit_key {_FROM} JOIN {_UNITS}
            WHERE t.state = 'SUCCEEDED' AND u.state <> 'DONE'""",
    ),
    Rule(
        name="succeeded without units",
        advice=_NOT_OURS,
        sql=f"""{_OF} 'no unit' {_FROM} LEFT JOIN {_UNITS}
            WHERE t.state = 'SUCCEEDED' AND u.trial_id IS NULL""",
    ),
    Rule(
        name="scores of a task that is not done",
        advice=_NOT_OURS,
        sql=f"""SELECT DISTINCT s.name, t.trial_key, t.label, m.task {_FROM}
            JOIN metric m ON m.trial_id = t.id AND m.generation = t.generation
            WHERE EXISTS (SELECT 1 FROM unit u WHERE u.trial_id = t.id
                AND u.generation = t.generation AND u.task = m.task AND u.state <> 'DONE')
            OR NOT EXISTS (SELECT 1 FROM unit u WHERE u.trial_id = t.id
                AND u.generation = t.generation AND u.task = m.task)""",
    ),
    Rule(
        name="task done without scores",
        advice=_NOT_OURS,
        sql=f"""{_OF} u.task {_FROM} JOIN {_UNITS}
            WHERE u.kind = 'evaluate' AND NOT EXISTS (SELECT 1 FROM metric m
                WHERE m.trial_id = t.id AND m.generation = t.generation AND m.task = u.task)
            GROUP BY s.name, t.trial_key, t.label, u.task
            HAVING SUM(CASE WHEN u.state = 'DONE' THEN 0 ELSE 1 END) = 0""",
    ),
    Rule(
        name="measured on different weights",
        advice=_NOT_OURS,
        sql=f"""{_OF} 'several digests' {_FROM} JOIN {_UNITS}
            GROUP BY s.name, t.trial_key, t.label HAVING COUNT(DISTINCT u.weights_sha256) > 1""",
    ),
    Rule(
        name="running without a controller",
        advice="its controller is gone: `dllm-sweep resume` puts it back and goes on",
        sql=f"""{_OF} 'the lease has run out' {_FROM}
            WHERE t.state = 'RUNNING' AND (s.lease_until_s IS NULL OR s.lease_until_s < ?)""",
    ),
    Rule(
        name="running under an older controller",
        advice=_NOT_OURS,
        sql=f"{_OF} 'another epoch' {_FROM} WHERE t.state = 'RUNNING' AND t.epoch <> s.epoch",
    ),
    Rule(
        name="running without an attempt",
        advice=_NOT_OURS,
        sql=f"""{_OF} 'no open attempt' {_FROM} WHERE t.state = 'RUNNING' AND NOT EXISTS (
            SELECT 1 FROM attempt a WHERE a.trial_id = t.id AND a.attempt = t.attempt
            AND a.ended_s IS NULL)""",
    ),
    Rule(
        name="attempt left open",
        advice=_NOT_OURS,
        sql=f"""{_OF} 'see dllm-sweep show' {_FROM} JOIN attempt a ON a.trial_id = t.id
            WHERE a.ended_s IS NULL AND (t.state <> 'RUNNING' OR a.attempt <> t.attempt)""",
    ),
    Rule(
        name="history ends in another state",
        advice=_NOT_OURS,
        sql=f"""{_OF} e.to_state {_FROM} JOIN event e ON e.id = (
            SELECT MAX(l.id) FROM event l WHERE l.trial_id = t.id)
            WHERE e.to_state <> t.state""",
    ),
)


def find(store: SqlStore) -> tuple[Contradiction, ...]:
    """All trials of all sweeps that break a rule."""
    now = now_s(store)
    return tuple(
        Contradiction(rule=rule, sweep=sweep, trial_key=key, label=label, detail=str(detail))
        for rule in RULES
        for sweep, key, label, detail in store.query(rule.sql, (now,) * rule.sql.count("?")).rows
    )
