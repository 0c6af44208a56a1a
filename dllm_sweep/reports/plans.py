"""A plan as a listing, and in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dllm_sweep.plan import Plan
from dllm_sweep.records import TrialRow, TrialState
from dllm_sweep.reports.listing import Listing
from dllm_sweep.standings import Standing

_SHORT_KEY = 8


def listing_of(found: Sequence[Standing], *, full: bool) -> Listing:
    """One row a trial; `full` gives whole keys, for programs, and costs as plain seconds."""
    columns = ("key", "trial", "status", "units", "cost_s" if full else "cost", "reason")
    return Listing(columns, tuple(_row(standing, full) for standing in found))


def _row(standing: Standing, full: bool) -> tuple[object, ...]:
    trial = standing.trial
    cost_s = trial.estimated_s
    return (
        trial.spec.key if full else trial.spec.key[:_SHORT_KEY],
        trial.label,
        standing.status,
        f"{standing.units_done}/{units_of(standing)}",
        cost_s if full else duration(cost_s),
        standing.reason,
    )


def units_of(standing: Standing) -> int:
    """How many units a trial has; one that is skipped has none."""
    trial = standing.trial
    return 0 if standing.status == "skipped" else len(trial.units or trial.spec.units())


def summary_of(plan: Plan, found: Sequence[Standing]) -> str:
    """How many trials stand how, what is left to do, and what the plan changed."""
    counts = Counter(standing.status for standing in found)
    parts = ", ".join(f"{number} {status}" for status, number in counts.items())
    left = [standing for standing in found if standing.status in ("new", "pending", "running")]
    units = sum(units_of(standing) - standing.units_done for standing in left)
    cost_s = sum(standing.trial.estimated_s for standing in left)
    lines = [f"sweep {plan.name!r}: {len(found)} trials ({parts})"]
    if left:
        lines.append(f"to do: {units} units, about {duration(cost_s)} on one worker")
    if plan.added:
        lines.append(f"added by itself: {', '.join(plan.added)}")
    if plan.merged:
        lines.append(f"named more than once, planned once: {', '.join(plan.merged)}")
    return "\n".join([*lines, *plan.notes])


def launch_note(plan: Plan, found: Sequence[Standing], rows: Sequence[TrialRow]) -> str:
    """What a launch found: the plan in one sentence, and older trials that will run, too."""
    own = {standing.trial.spec.key for standing in found}
    waiting = (TrialState.PENDING, TrialState.RUNNING)
    older = [row.label for row in rows if row.key not in own and row.state in waiting]
    lines = [summary_of(plan, found)]
    lines += [
        f"skipped: {standing.trial.label}: {standing.reason}"
        for standing in found
        if standing.status == "skipped"
    ]
    if older:
        lines.append(
            f"{len(older)} unfinished trials of an earlier version of this sweep run, too"
            " (`dllm-sweep cancel` drops them)"
        )
    return "\n".join(lines)


def run_note(rows: Sequence[TrialRow]) -> str:
    """What a run will do: the trials that wait, with the units that are not done."""
    units = sum(row.units - row.units_done for row in rows)
    labels = "".join(
        f"\n  {row.label} ({row.units - row.units_done} of {row.units} units)" for row in rows
    )
    return f"running {units} units of {len(rows)} trials:{labels}"


def duration(seconds: float) -> str:
    """Write a duration for people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
