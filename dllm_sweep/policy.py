"""Which trial an idle worker takes next: pure functions over what the store says.

The order of work: trials that lost their worker, then baselines, then one trial of each model
and method, so that a broken quantizer shows within minutes, then the longest first, with
preference for the model that the worker holds already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from dllm_sweep.records import TrialRow, TrialState

_SAME_FAULT_LIMIT = 3
_RESIDENT_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A failure as the circuit breaker counts it."""

    trial_id: int
    model: str
    method: str
    fingerprint: str


def choose(
    trials: Sequence[TrialRow], *, resident_model: str | None, held: frozenset[tuple[str, str]]
) -> TrialRow | None:
    """Pick the trial that an idle worker should claim, or None if none may start now.

    Args:
        trials: All trials of the sweep.
        resident_model: The model in the worker's memory; None if it holds none.
        held: Pairs of model and method that are held back.
    """
    ready = [trial for trial in trials if _may_start(trial, held)]
    if not ready:
        return None
    started = {
        (trial.model, trial.method) for trial in trials if trial.state is not TrialState.PENDING
    }
    best = max(ready, key=lambda trial: _rank(trial, started))
    return _prefer_resident(best, ready, started, resident_model)


def next_start_s(trials: Sequence[TrialRow], held: frozenset[tuple[str, str]]) -> float | None:
    """Seconds until some pending trial may start; None if none ever will."""
    waits = [
        max(trial.ready_in_s, 0.0)
        for trial in trials
        if trial.state is TrialState.PENDING and (trial.model, trial.method) not in held
    ]
    return min(waits, default=None)


def held_back(faults: Sequence[Fault]) -> frozenset[tuple[str, str]]:
    """Pairs of model and method in which the same fault has ended three trials.

    What failed three times in the same place will fail in the remaining trials, too; they wait
    for the user instead.
    """
    distinct = {(f.model, f.method, f.fingerprint, f.trial_id) for f in faults}
    count = Counter((model, method, mark) for model, method, mark, _ in distinct)
    return frozenset(
        (model, method) for (model, method, _), n in count.items() if n >= _SAME_FAULT_LIMIT
    )


def _may_start(trial: TrialRow, held: frozenset[tuple[str, str]]) -> bool:
    waiting = trial.state is TrialState.PENDING and trial.ready_in_s <= 0
    return waiting and (trial.model, trial.method) not in held


def _rank(trial: TrialRow, started: set[tuple[str, str]]) -> tuple[bool, int, bool, float, int]:
    orphaned = trial.attempt > 0
    probe = (trial.model, trial.method) not in started
    return orphaned, trial.priority, probe, trial.estimated_s, -trial.id


def _prefer_resident(
    best: TrialRow,
    ready: Sequence[TrialRow],
    started: set[tuple[str, str]],
    resident_model: str | None,
) -> TrialRow:
    # Loading a model costs minutes, so a somewhat shorter trial of the model at hand is better;
    # what must come first (lost work, baselines, probes) is not delayed by that.
    urgent = _rank(best, started)[:3]
    same = [
        trial
        for trial in ready
        if trial.model == resident_model
        and _rank(trial, started)[:3] == urgent
        and trial.estimated_s >= _RESIDENT_SHARE * best.estimated_s
    ]
    return max(same, key=lambda trial: _rank(trial, started), default=best)
