"""How the trials of a plan stand in a store that may have some of them already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dllm_sweep.plan import Plan
from dllm_sweep.records import PlannedTrial, TrialRow, TrialState


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One trial of a plan and what the store has of it.

    Attributes:
        trial: The trial.
        status: `new`, `done`, `running`, `pending`, `failed`, `cancelled`, `pruned` or `skipped`.
        reason: Why it is skipped, failed or waits; empty if there is nothing to say.
        units_done: How many of its units are committed.
    """

    trial: PlannedTrial
    status: str
    reason: str = ""
    units_done: int = 0


def standings(plan: Plan, rows: Sequence[TrialRow]) -> tuple[Standing, ...]:
    """Say of each trial how it stands in the store; `rows` are the store's trials of the sweep."""
    known = {row.key: row for row in rows}
    return tuple(_standing(trial, known.get(trial.spec.key)) for trial in plan.trials)


def _standing(trial: PlannedTrial, row: TrialRow | None) -> Standing:
    if trial.skip_reason is not None:
        return Standing(trial=trial, status="skipped", reason=trial.skip_reason)
    if row is None:
        return Standing(trial=trial, status="new")
    words = {TrialState.SUCCEEDED: "done"}
    status = words.get(row.state, str(row.state).lower())
    return Standing(trial=trial, status=status, reason=row.reason, units_done=row.units_done)
