"""Failures grouped by what went wrong, so that a hundred failed trials read as three faults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from dllm_sweep.reports.hints import Rule, rule_for
from dllm_sweep.reports.listing import Listing

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

_SQL = """SELECT trial_key, label, model, method, scheme, state, attempt, end_reason, error_type,
    message, fingerprint, unit, host, ended_s
FROM failures WHERE sweep = ? ORDER BY ended_s, trial_key, attempt"""
_TRACEBACK_SQL = """SELECT traceback FROM failures
WHERE sweep = ? AND trial_key = ? AND attempt = ? AND fingerprint = ? ORDER BY ended_s DESC"""
_COLUMNS = (
    "class",
    "error_type",
    "failures",
    "trials",
    "failed_now",
    "models",
    "methods",
    "fingerprint",
    "unit",
    "message",
    "first_s",
    "last_s",
    "last_trial",
    "last_host",
    "kind",
    "hint",
)
_LINE = 160


@dataclass(frozen=True, kw_only=True)
class Group:
    """All failures of a sweep at one place of the code.

    Attributes:
        end_reason: Why the attempts ended.
        error_type: Class of the exception.
        fingerprint: Error and place.
        failures: Rows of the view `failures`, oldest first.
    """

    end_reason: str
    error_type: str
    fingerprint: str
    failures: tuple[Mapping[str, Any], ...]

    @property
    def last(self) -> Mapping[str, Any]:
        """The latest of them."""
        return self.failures[-1]

    @property
    def trials(self) -> int:
        """How many trials it has hit."""
        return len({row["trial_key"] for row in self.failures})

    @property
    def failed_now(self) -> int:
        """How many of those have failed for good; the others wait, run or succeeded later."""
        return len({row["trial_key"] for row in self.failures if row["state"] == "FAILED"})

    @property
    def rule(self) -> Rule:
        """What kind of failure it is, and what to do."""
        return rule_for(self.end_reason, self.error_type, self.last["message"])

    def named(self, column: str) -> tuple[str, ...]:
        """All values of a column, sorted."""
        return tuple(sorted({row[column] for row in self.failures}))


def read_groups(store: SqlStore, sweep: str) -> tuple[Group, ...]:
    """The groups of a sweep: those that have failed most trials for good first."""
    return grouped(store.query(_SQL, (sweep,)).dicts())


def grouped(rows: Iterable[Mapping[str, Any]]) -> tuple[Group, ...]:
    """Group rows of the view `failures`, which come oldest first."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        key = row["end_reason"], row["error_type"], row["fingerprint"]
        found.setdefault(key, []).append(row)
    groups = (
        Group(end_reason=reason, error_type=error, fingerprint=place, failures=tuple(failures))
        for (reason, error, place), failures in found.items()
    )
    return tuple(sorted(groups, key=lambda group: (-group.failed_now, -len(group.failures))))


def last_traceback(store: SqlStore, sweep: str, group: Group) -> str:
    """The traceback of a group's latest failure; empty if its process told nothing."""
    last = group.last
    key = (sweep, last["trial_key"], last["attempt"], group.fingerprint)
    rows = store.query(_TRACEBACK_SQL, key).rows
    return str(rows[0][0]).rstrip() if rows else ""


def listing_of(groups: Sequence[Group]) -> Listing:
    """One row a group, for programs."""
    return Listing(_COLUMNS, tuple(_row(group) for group in groups))


def _row(group: Group) -> tuple[object, ...]:
    return (
        group.end_reason,
        group.error_type,
        len(group.failures),
        group.trials,
        group.failed_now,
        " ".join(group.named("model")),
        " ".join(group.named("method")),
        group.fingerprint,
        group.last["unit"],
        group.last["message"],
        group.failures[0]["ended_s"],
        group.last["ended_s"],
        group.last["trial_key"],
        group.last["host"],
        group.rule.kind,
        group.rule.advice,
    )


def text_of(group: Group) -> str:
    """A group for people: what, how often, where, when, and what to do."""
    last = group.last
    message = " ".join(str(last["message"]).split())
    facts = {
        "where": f"{', '.join(group.named('model'))} x {', '.join(group.named('method'))}"
        f", unit {last['unit']}",
        "place": group.fingerprint,
        "said": message if len(message) <= _LINE else f"{message[:_LINE]}...",
        "when": _when(group.failures[0]["ended_s"], last["ended_s"]),
        "last": f"{last['label']} ({last['trial_key'][:8]}), attempt {last['attempt']}"
        f" on {last['host']}",
        "do": group.rule.advice,
    }
    lines = "".join(f"  {name:<6} {text}\n" for name, text in facts.items())
    return f"{_head(group)}\n{lines}"


def _head(group: Group) -> str:
    number, trials = len(group.failures), group.trials
    times = f"{number} failure{'s' * (number != 1)} in {trials} trial{'s' * (trials != 1)}"
    now = f"{group.failed_now} failed for good" if group.failed_now else "none failed for good"
    return f"{group.end_reason} {group.error_type} [{group.rule.kind}]: {times}, {now}"


def _when(first_s: float, last_s: float) -> str:
    first, last = (
        datetime.fromtimestamp(at).isoformat(sep=" ", timespec="seconds")
        for at in (first_s, last_s)
    )
    return first if first == last else f"{first} to {last}"
