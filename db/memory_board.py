"""What the controller reads of the store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dllm_sweep.db.board import NEWEST_TIMES
from dllm_sweep.db.memory_rows import MemoryTrial
from dllm_sweep.db.result_rows import finite
from dllm_sweep.db.transitions import RetryPolicy, waits_s
from dllm_sweep.records import OPEN_STATES, Score, TrialRow, UnitResult, UnitStanding, UnitTime


def trial_row(trial: MemoryTrial, now_s: float, policy: RetryPolicy) -> TrialRow:
    """A trial as it stands."""
    spec = trial.plan.spec
    return TrialRow(
        id=trial.id,
        key=trial.key,
        label=trial.plan.label,
        state=trial.state,
        attempt=trial.attempt,
        reason=trial.reason,
        model=str(spec.model),
        method=spec.method,
        units=len(trial.units),
        units_done=len(trial.done),
        priority=trial.plan.priority,
        estimated_s=trial.plan.estimated_s,
        ready_in_s=waits_s(trial.ready_at_s, now_s, policy),
        scheme=str(spec.scheme),
        is_baseline=spec.is_baseline,
    )


def units(trials: Iterable[MemoryTrial]) -> tuple[UnitStanding, ...]:
    """The units of trials that are not over."""
    return tuple(
        UnitStanding(trial_id=trial.id, unit=unit, estimated_s=estimated_s, done=key in trial.done)
        for trial in trials
        if trial.state in OPEN_STATES
        for key, (unit, estimated_s) in trial.units.items()
    )


def unit_time(trial: MemoryTrial, result: UnitResult) -> UnitTime:
    """How long a unit took that has just been committed."""
    spec, unit = trial.plan.spec, result.unit
    return UnitTime(
        model=str(spec.model),
        method=spec.method,
        scheme=str(spec.scheme),
        kind=unit.kind,
        task=unit.task,
        device=result.device,
        estimated_s=trial.units[unit.key][1],
        wall_s=result.wall_s,
    )


def newest(times: Sequence[UnitTime]) -> tuple[UnitTime, ...]:
    """The newest times of units alike; `times` and the answer are oldest first."""
    seen: Counter[tuple[str, ...]] = Counter()
    found: list[UnitTime] = []
    for time in reversed(times):
        alike = (time.model, time.method, time.scheme, time.kind, time.task, time.device)
        seen[alike] += 1
        if seen[alike] <= NEWEST_TIMES:
            found.append(time)
    return tuple(reversed(found))


def scores(trials: Iterable[MemoryTrial]) -> tuple[Score, ...]:
    """The primary scores of wholly committed tasks, by trial and task."""
    return tuple(
        Score(
            trial_id=trial.id,
            task=metric.task,
            value=finite(metric.value)[0],
            stderr=finite(metric.stderr)[0],
            n=metric.n,
            higher_is_better=metric.higher_is_better,
        )
        for trial in trials
        for task in sorted(trial.metrics)
        for metric in sorted(trial.metrics[task], key=lambda metric: (metric.task, metric.name))
        if metric.primary
    )
