"""What the store in memory keeps of a sweep and of a trial."""

from __future__ import annotations

from dataclasses import dataclass, field

from dllm_sweep.db.results import refuse_before_quantize, weights_digest
from dllm_sweep.db.transitions import Standing
from dllm_sweep.errors import StoreError
from dllm_sweep.records import (
    Artifact,
    Claim,
    EndReason,
    Holder,
    PlannedTrial,
    TrialState,
    UnitResult,
)


@dataclass
class MemoryTrial:
    """One trial with the units committed on its current weights."""

    id: int
    sweep: MemorySweep
    plan: PlannedTrial
    state: TrialState
    reason: str
    attempt: int = 0
    claim_id: str = ""
    standing: Standing = field(default_factory=Standing)
    ready_at_s: float = 0.0
    ended: dict[int, EndReason] = field(default_factory=dict)
    done: dict[str, tuple[int, UnitResult]] = field(default_factory=dict)
    """Committed units of the current weights: which attempt, and what."""

    @property
    def units(self) -> tuple[str, ...]:
        """Keys of all its units."""
        if self.state is TrialState.SKIPPED:
            return ()
        return tuple(unit.key for unit in self.plan.spec.units())

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


def put(trial: MemoryTrial, claim: Claim, result: UnitResult) -> None:
    """Keep a unit's result by the rules of `results.commit`."""
    key = result.unit.key
    if key not in trial.units:
        raise StoreError(f"trial {trial.id} has no unit {key}")
    current = None if trial.weights is None else trial.weights.sha256
    made = weights_digest(claim, result, current)
    if result.unit.kind != "quantize":
        refuse_before_quantize(
            claim, result, quantized="quantize" in trial.done or "quantize" not in trial.units
        )
        trial.done.setdefault(key, (claim.attempt, result))
    elif key not in trial.done or made is None or made != current:
        trial.done.clear()
        trial.done[key] = (claim.attempt, result)
