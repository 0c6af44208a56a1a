"""What the store in memory keeps of a sweep and of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field

from dllm_sweep.db.memory_log import MemoryLog
from dllm_sweep.db.planning import planned_units
from dllm_sweep.db.results import refuse_before_quantize, refuse_other_weights, weights_digest
from dllm_sweep.db.shards import merge, refuse_unmergeable
from dllm_sweep.db.transitions import Standing
from dllm_sweep.errors import StoreError
from dllm_sweep.records import (
    Artifact,
    Claim,
    EndReason,
    Holder,
    Metric,
    PlannedTrial,
    TrialState,
    UnitResult,
)
from dllm_sweep.spec import Unit


@dataclass
class MemoryTrial:
    """One trial with the units committed on its current weights."""

    id: int
    sweep: MemorySweep
    key: str
    plan: PlannedTrial
    state: TrialState
    reason: str
    attempt: int = 0
    claim_id: str = ""
    standing: Standing = field(default_factory=Standing)
    ready_at_s: float = 0.0
    reused: bool = False
    ended: dict[int, EndReason] = field(default_factory=dict)
    lost: set[tuple[int, str]] = field(default_factory=set)
    """Attempts and workers whose loss has been charged."""
    done: dict[str, tuple[int, UnitResult]] = field(default_factory=dict)
    """Committed units of the current weights: which attempt, and what."""
    metrics: dict[str, tuple[Metric, ...]] = field(default_factory=dict)
    """Scores of the tasks that are wholly committed."""
    log: MemoryLog = field(default_factory=MemoryLog)
    units: dict[str, tuple[Unit, float]] = field(init=False)
    """All its units by key with their estimates in seconds, in the order in which they run."""

    def __post_init__(self) -> None:
        planned = () if self.state is TrialState.SKIPPED else planned_units(self.plan)
        self.units = {unit.unit.key: (unit.unit, unit.estimated_s) for unit in planned}

    @property
    def weights(self) -> Artifact | None:
        """The weights that the committed units were measured on."""
        if "quantize" not in self.done:
            return None
        artifacts = self.done["quantize"][1].artifacts
        return next((artifact for artifact in artifacts if artifact.kind == "weights"), None)


@dataclass
class MemorySweep:
    """One sweep and its lease."""

    id: int
    name: str
    source: str
    paused: bool = False
    epoch: int = 0
    holder: Holder | None = None
    lease_until_s: float = 0.0
    trials: dict[str, MemoryTrial] = field(default_factory=dict)


def put(trial: MemoryTrial, claim: Claim, result: UnitResult) -> UnitResult | None:
    """Keep a unit's result by the rules of `results.commit`; None if there was nothing to keep."""
    key = result.unit.key
    if key not in trial.units:
        raise StoreError(f"trial {trial.id} has no unit {key}")
    current = None if trial.weights is None else trial.weights.sha256
    made = weights_digest(claim, result, current)
    if result.unit.kind != "quantize":
        return _put_measured(trial, claim, result, current)
    if key in trial.done and made == current:
        repeated = trial.done[key][0] == claim.attempt
        if made is not None or repeated:
            return None
    trial.done.clear()
    trial.metrics.clear()
    trial.done[key] = (claim.attempt, result)
    return result


def _put_measured(
    trial: MemoryTrial, claim: Claim, result: UnitResult, current: str | None
) -> UnitResult | None:
    key, unit = result.unit.key, result.unit
    refuse_before_quantize(
        claim, result, quantized="quantize" in trial.done or "quantize" not in trial.units
    )
    if key in trial.done:
        return None
    refuse_other_weights(claim, result, current)
    parts = [result]
    if unit.shards > 1:
        refuse_unmergeable(unit, result.metrics)
        parts += [done for _, done in trial.done.values() if done.unit.task == unit.task]
    if len(parts) == unit.shards:
        trial.metrics[unit.task] = _scores(unit, parts)
    trial.done[key] = (claim.attempt, result)
    return result


def _scores(unit: Unit, parts: list[UnitResult]) -> tuple[Metric, ...]:
    metrics = [metric for part in parts for metric in part.metrics]
    return tuple(metrics) if unit.shards == 1 else merge(unit, metrics)


def copy_results(trial: MemoryTrial, origin: MemoryTrial) -> None:
    """Take the results over that the same trial of another sweep has."""
    trial.reused = True
    trial.units, trial.metrics = origin.units, dict(origin.metrics)
    trial.done = {key: (0, result) for key, (_, result) in origin.done.items()}
