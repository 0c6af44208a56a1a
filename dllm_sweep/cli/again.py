"""What `launch`, `resume` and `retry` share: from the store's state to a run and its outcome."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from dllm_sweep.cli.options import existing_store
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.records import EndReason, TrialRow, TrialState
from dllm_sweep.reports.plans import run_note

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

_RETRIED = (TrialState.FAILED, TrialState.CANCELLED)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a sweep stands after a run.

    Attributes:
        sentence: One line for people.
        failed: Trials that have failed.
        interrupted: Whether the user stopped the run.
    """

    sentence: str
    failed: int
    interrupted: bool


def put_back(store: SqlStore, sweep_id: int, keys: Sequence[str], reason: str | None) -> int:
    """Put failed trials back to PENDING; named ones also if they were cancelled.

    Raises:
        UnknownName: If there is no such reason.
        InputError: If a key names no trial that failed or was cancelled.
    """
    if reason is not None and reason.upper() not in list(EndReason):
        raise UnknownName("class", reason, list(EndReason))
    rows = store.trials(sweep_id)
    for key in keys:
        _check_key(key, rows)
    return store.retry(
        sweep_id,
        states=_RETRIED if keys else _RETRIED[:1],
        reasons=() if reason is None else (reason.upper(),),
        keys=keys,
    )


def _check_key(key: str, rows: Sequence[TrialRow]) -> None:
    named = [row for row in rows if row.key.startswith(key)]
    if not named:
        raise InputError(f"no trial of this sweep has a key that starts with {key!r}")
    if not any(row.state in _RETRIED for row in named):
        raise InputError(
            f"{named[0].label} is {named[0].state}: only failed or cancelled run again"
        )


def run_pending(store: str | None, sweep: str, options: Mapping[str, Any]) -> Outcome:
    """Run what is pending of a sweep; without anything pending, Ray is not even imported.

    Args:
        store: The store's address as written.
        sweep: Name of the sweep.
        options: The command line's; they go before what the sweep file says.
    """
    with existing_store(store) as opened:
        before = opened.trials(opened.sweep(sweep).id)
    waiting = [row for row in before if row.state in (TrialState.PENDING, TrialState.RUNNING)]
    if not waiting:
        return _outcome(before, "nothing to run", interrupted=False)
    click.echo(run_note(waiting), err=options.get("log_format") == "json")
    from dllm_sweep.run import RunOptions, run_sweep
    from dllm_sweep.stored import resolve_store

    told = {name: value for name, value in options.items() if value is not None}
    summary = run_sweep(resolve_store(store), sweep, RunOptions(**told))
    with existing_store(store) as opened:
        after = opened.trials(opened.sweep(sweep).id)
    return _outcome(after, f"ran for {summary.wall_s:.0f} s", interrupted=summary.interrupted)


def _outcome(rows: Sequence[TrialRow], what: str, *, interrupted: bool) -> Outcome:
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{number} {str(state).lower()}" for state, number in counts.items())
    hints = {
        TrialState.FAILED: "`dllm-sweep retry --failed` runs the failed again",
        TrialState.PENDING: "`dllm-sweep resume` goes on",
    }
    told = "".join(f"; {hint}" for state, hint in hints.items() if counts[state])
    return Outcome(
        sentence=f"{what}: {states}{told}",
        failed=counts[TrialState.FAILED],
        interrupted=interrupted,
    )
