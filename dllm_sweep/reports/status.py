"""Sweeps at a glance: one, trial by trial, and all of a store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from dllm_sweep.process import is_alive
from dllm_sweep.records import TrialState
from dllm_sweep.reports.listing import Listing
from dllm_sweep.reports.plans import duration

if TYPE_CHECKING:
    from dllm_sweep.db.overview import SweepStanding, TrialLine
    from dllm_sweep.db.store import SqlStore

SHOWN = 40
"""Sweeps with more trials than this show what runs, failed and waits after a failure."""
_SHORT_KEY = 8
_OF_INTEREST = (
    TrialState.RUNNING,
    TrialState.FAILED,
    TrialState.PRUNED,
    TrialState.PENDING,
)


def lines_of(store: SqlStore, sweep: SweepStanding, *, everything: bool) -> tuple[TrialLine, ...]:
    """The trials to show: all of a small sweep, of a large one those of most interest first."""
    from dllm_sweep.db.overview import trial_lines

    if everything or sum(sweep.trials.values()) <= SHOWN:
        return trial_lines(store, sweep.name, states=tuple(TrialState))
    found: list[TrialLine] = []
    for state in _OF_INTEREST:
        room = SHOWN - len(found)
        if room and sweep.trials.get(state):
            found += trial_lines(store, sweep.name, states=(state,), limit=room)
    return tuple(found)


def status_listing(trials: Iterable[TrialLine], *, full: bool) -> Listing:
    """One row a trial; `full` gives whole keys, and reasons as they are stored."""
    columns = ("key", "trial", "state", "units", "attempts", "reason")
    rows = tuple(
        (
            row.key if full else row.key[:_SHORT_KEY],
            row.label,
            str(row.state),
            f"{row.units_done}/{row.units}",
            row.attempt,
            row.reason if full else _doing(row),
        )
        for row in trials
    )
    return Listing(columns, rows)


def _doing(row: TrialLine) -> str:
    """Where a trial runs, when it runs again, or why it does not."""
    if row.state is TrialState.RUNNING and row.running_s is not None:
        heard = "" if row.silent_s is None else f", heard {duration(row.silent_s)} ago"
        return f"on {row.host} ({row.device}) for {duration(row.running_s)}{heard}"
    if row.state is TrialState.PENDING and row.ready_in_s > 0:
        return f"{row.reason}; again in {duration(row.ready_in_s)}"
    return row.reason


def status_text(sweep: SweepStanding, shown: int) -> str:
    """How far a sweep is, who runs it, and how long it may take, in a few lines."""
    counts = ", ".join(
        f"{sweep.trials[state]} {state.lower()}" for state in TrialState if sweep.trials.get(state)
    )
    lines = [
        f"sweep {sweep.name!r}{' (paused)' if sweep.paused else ''}: {counts or 'no trials'};"
        f" {sweep.units_done} of {sweep.units} units done{_left(sweep)}",
        _controller(sweep),
    ]
    more = sum(sweep.trials.values()) - shown
    if more > 0:
        lines.append(f"{more} trials more: --all lists them")
    if sweep.trials.get(TrialState.FAILED):
        lines.append("`dllm-sweep failures` says what went wrong")
    return "\n".join(line for line in lines if line)


def _left(sweep: SweepStanding) -> str:
    if sweep.is_over or not sweep.left_s:
        return ""
    running = sweep.trials.get(TrialState.RUNNING, 0)
    text = f"; about {duration(sweep.left_s)} left on one worker"
    return text if running < 2 else f"{text}, {duration(sweep.left_s / running)} on {running}"


def _controller(sweep: SweepStanding) -> str:
    """Who runs the sweep, told so that one knows what to do."""
    holder, left_s = sweep.controller, sweep.lease_left_s
    if holder is None or left_s is None:
        return "" if sweep.is_over else "nobody runs it: `dllm-sweep resume` goes on"
    who = f"process {holder.pid} on {holder.host}"
    if is_alive(holder) is False:
        return f"{who} ran it and is gone: `dllm-sweep resume` goes on"
    if left_s > 0:
        return f"run by {who}, its lease for {left_s:.0f} s more"
    return f"{who} ran it, its lease ran out {duration(-left_s)} ago: `dllm-sweep resume` goes on"


def state_of(sweep: SweepStanding) -> str:
    """The state of a sweep in one word."""
    if sweep.is_over:
        return "finished"
    if sweep.paused:
        return "paused"
    holder = sweep.controller
    if holder is None:
        return "stopped"
    return "running" if sweep.is_run and is_alive(holder) is not False else "abandoned"


def sweeps_listing(sweeps: Sequence[SweepStanding], *, full: bool) -> Listing:
    """One row a sweep; `full` gives one column for each state, and plain seconds."""
    states = [str(state).lower() for state in TrialState]
    middle = states if full else ["trials"]
    columns = ("sweep", "state", "controller", *middle, "units", "units_done", "left", "launched")
    return Listing(columns, tuple(_sweep_row(sweep, full) for sweep in sweeps))


def _sweep_row(sweep: SweepStanding, full: bool) -> tuple[object, ...]:
    counts = {state: sweep.trials.get(state, 0) for state in TrialState}
    told = ", ".join(f"{number} {state.lower()}" for state, number in counts.items() if number)
    launched = datetime.fromtimestamp(sweep.launched_s).isoformat(sep=" ", timespec="seconds")
    left_s = 0.0 if sweep.is_over else sweep.left_s
    holder = sweep.controller
    return (
        sweep.name,
        state_of(sweep),
        f"{holder.host}:{holder.pid}" if holder else "",
        *(counts.values() if full else (told,)),
        sweep.units,
        sweep.units_done,
        left_s if full else duration(left_s) if left_s else "",
        sweep.launched_s if full else launched,
    )
