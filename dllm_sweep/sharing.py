"""What the trials of a plan have in common: work that is done once for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dllm_sweep.records import PlannedTrial
from dllm_sweep.spec import TrialSpec, sha256_of, to_json

KEY_DIGITS = 12
TOKENS_PER_S = 5e5
"""Tokens that a tokenizer reads on one core, measured with the embedded model's."""

_BASELINES = "baseline"
_MODELS = "model"
_CALIBRATIONS = "calibration"
_WEIGHTS = "weights"


@dataclass(frozen=True, kw_only=True)
class SharedStage:
    """One piece of work that several trials of a plan need.

    Attributes:
        kind: `model` (loaded once for trials that follow each other on a worker), `calibration`
            (text read and tokenized), `weights` (quantized once), or `baseline` (the
            full-precision scores that others are compared with).
        key: What it is made from, the first digits of a SHA-256.
        what: The same for people.
        trials: How many trials need it, at least 2.
        saved_s: Estimated seconds that sharing it saves, if it is shared by all of them; for a
            baseline, against one full-precision run for each trial.
    """

    kind: str
    key: str
    what: str
    trials: int
    saved_s: float


def quantization_key(spec: TrialSpec) -> str | None:
    """Say what decides a trial's quantized weights, as a SHA-256.

    Trials that differ only in their evaluation have the same key. None for a baseline, which has
    no such weights, and where the plan does not know the content of the model or of the text.
    """
    text = spec.calibration
    known = spec.model.digest is not None and (text is None or text.digest is not None)
    if spec.is_baseline or not known:
        return None
    parts = (
        # The digest alone: the same weights may have several names.
        spec.model.digest,
        spec.method,
        spec.method_version,
        to_json(spec.parameters),
        to_json(spec.scheme),
        to_json(text),
        spec.seed,
        spec.protocol.dtype,
    )
    return sha256_of(list(parts))


def shared_weights(specs: Iterable[TrialSpec]) -> frozenset[str]:
    """Quantization keys that more than one of these trials has."""
    counts = Counter(quantization_key(spec) for spec in specs)
    return frozenset(key for key, count in counts.items() if key is not None and count > 1)


def shared_stages(trials: Iterable[PlannedTrial]) -> tuple[SharedStage, ...]:
    """List what the trials of a plan share, what saves most first; skipped ones are passed over.

    What is saved follows from the plan's own estimates, on the machines that they were made for.
    """
    needs: dict[tuple[str, str], list[_Need]] = {}
    for trial in trials:
        for need in _needs(trial) if trial.skip_reason is None else ():
            needs.setdefault((need.kind, need.key), []).append(need)
    found = [_shared(group) for group in needs.values() if len(group) > 1]
    return tuple(sorted(found, key=lambda one: (-one.saved_s, one.kind, one.key)))


@dataclass(frozen=True, kw_only=True)
class _Need:
    kind: str
    key: str
    what: str
    cost_s: float


def _shared(group: Sequence[_Need]) -> SharedStage:
    first, *others = group
    return SharedStage(
        kind=first.kind,
        key=first.key[:KEY_DIGITS],
        what=first.what,
        trials=len(group),
        saved_s=sum(need.cost_s for need in others),
    )


def _needs(trial: PlannedTrial) -> Iterable[_Need]:
    spec = trial.spec
    quantize_s = sum(unit.estimated_s for unit in trial.units if unit.unit.kind == "quantize")
    units_s = sum(unit.estimated_s for unit in trial.units)
    model = [spec.model.digest or str(spec.model), spec.protocol.dtype]
    load_s = trial.estimated_s - units_s
    yield _Need(kind=_MODELS, key=sha256_of(model), what=str(spec.model), cost_s=load_s)
    if spec.is_baseline:
        return
    baseline = [*model, spec.protocol.key, spec.seed]
    yield _Need(
        kind=_BASELINES,
        key=sha256_of(baseline),
        what=f"{spec.model} in full precision",
        cost_s=units_s - quantize_s,
    )
    if spec.calibration is not None:
        yield _Need(
            kind=_CALIBRATIONS,
            key=sha256_of([model[0], to_json(spec.calibration)]),
            what=str(spec.calibration),
            cost_s=spec.calibration.samples * spec.calibration.length / TOKENS_PER_S,
        )
    weights = quantization_key(spec)
    if weights is not None:
        what = f"{spec.model} {spec.method} {spec.scheme}"
        yield _Need(kind=_WEIGHTS, key=weights, what=what, cost_s=quantize_s)
