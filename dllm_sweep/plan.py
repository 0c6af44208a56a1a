"""A sweep file becomes a plan: the grid of trials, each canonical, each once, each with a reason.

Two points of the grid that mean the same work get the same spec and so the same key: axes that a
method does not read are dropped, defaults are written out, lists are sorted.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep import catalog, costs
from dllm_sweep.errors import InputError
from dllm_sweep.records import PlannedTrial, PlannedUnit
from dllm_sweep.spec import (
    FULL_PRECISION,
    FULL_PRECISION_BITS,
    FULL_PRECISION_METHOD,
    CalibrationSpec,
    ModelRef,
    Parameters,
    QuantScheme,
    TrialSpec,
)

if TYPE_CHECKING:
    from dllm_sweep.sweep_entries import ModelEntry
    from dllm_sweep.sweep_file import SweepFile
    from dllm_sweep.sweep_rules import Rule

BASELINE_PRIORITY = 100
"""Every other trial has priority 0: nothing can be ranked before its baseline is there."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All trials of one sweep.

    Attributes:
        name: The sweep's name.
        source: The sweep file's text.
        trials: Baselines first, then in the order of the file.
        merged: Labels of trials that the grid names more than once; each is planned once.
        added: Labels of the baselines that the file does not name.
    """

    name: str
    source: str
    trials: tuple[PlannedTrial, ...]
    merged: tuple[str, ...]
    added: tuple[str, ...]


@dataclass(frozen=True)
class _Model:
    """A model of the file with what its trials share."""

    names: tuple[str, ...]
    ref: ModelRef
    machine: costs.Machine
    parameters: float
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class _Method:
    """A method of the file, built with its parameters and with none."""

    names: tuple[str, ...]
    location: str
    built: Any
    usual: Any
    parameters: Parameters


@dataclass(frozen=True)
class _Text:
    """A calibration set of the file; None if no method needs one."""

    names: tuple[str, ...]
    spec: CalibrationSpec | None


@dataclass(frozen=True)
class _Point:
    """One point of the grid."""

    model: _Model
    method: _Method
    scheme: str
    calibration: _Text
    seed: int

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """What rules may call it, by axis."""
        return {
            "model": self.model.names,
            "method": self.method.names,
            "scheme": (self.scheme,),
            "calibration": self.calibration.names,
            "seed": (str(self.seed),),
        }


def make_plan(file: SweepFile, *, gpus: float | None = None) -> Plan:
    """Plan a sweep: the same file gives the same plan, and equal work has one key everywhere.

    Args:
        file: The sweep file.
        gpus: GPUs of a worker where the file does not say; None looks whether this machine has
            any. Estimates and shards depend on it, keys do not.

    Raises:
        InputError: If the rules leave nothing of the grid.
    """
    wanted = list(_trials(file, gpus))
    if not wanted:
        raise InputError(f"sweep {file.name!r}: include and exclude leave no trial: relax a rule")
    full = _method_of(FULL_PRECISION_METHOD, {}, ())
    compared = {_baseline(trial.spec, full): model for model, trial in wanted if _runs(trial)}
    named = {trial.spec.key for _, trial in wanted if trial.spec.is_baseline}
    baselines = _once(_planned(spec, model, full) for spec, model in compared.items())
    others = _once(trial for _, trial in wanted if not trial.spec.is_baseline)
    times = Counter(trial.spec.key for _, trial in wanted)
    return Plan(
        name=file.name,
        source=file.text,
        trials=(*baselines, *others),
        merged=tuple(trial.label for trial in others if times[trial.spec.key] > 1),
        added=tuple(trial.label for trial in baselines if trial.spec.key not in named),
    )


def _runs(trial: PlannedTrial) -> bool:
    return trial.skip_reason is None


def _trials(file: SweepFile, gpus: float | None) -> Iterator[tuple[_Model, PlannedTrial]]:
    """The canonical trials of the grid: nothing in their specs that does not change the work."""
    protocol = file.protocol
    for point in _points(file, gpus):
        built = point.method.built
        scheme = canonical_scheme(QuantScheme.parse(point.scheme), default=built.symmetric)
        spec = TrialSpec(
            model=point.model.ref,
            method=point.method.location,
            method_version=built.version,
            parameters=point.method.parameters,
            scheme=scheme,
            calibration=point.calibration.spec if built.needs_calibration else None,
            protocol=protocol,
            seed=point.seed,
        )
        skip_reason = built.refusal(scheme) or _misfit(spec, point.model.sizes)
        yield point.model, _planned(spec, point.model, point.method, skip_reason)


def _points(file: SweepFile, gpus: float | None) -> Iterator[_Point]:
    """The grid after the rules; the baseline has one scheme, its own, whatever is listed."""
    models = [_model_of(entry, file, gpus) for entry in file.models]
    methods = [
        _method_of(entry.location(file.folder), entry.parameters, entry.names)
        for entry in file.methods
    ]
    read = any(method.built.needs_calibration for method in methods)
    texts = [_Text(e.names, e.text(file.folder) if read else None) for e in file.calibration]
    for model, method in product(models, methods):
        baseline = method.location == FULL_PRECISION_METHOD
        schemes = (str(FULL_PRECISION),) if baseline else file.schemes
        for scheme, text, seed in product(schemes, texts, file.seeds):
            point = _Point(model, method, scheme, text, seed)
            if _survives(point, file.include, file.exclude):
                yield point


def _model_of(entry: ModelEntry, file: SweepFile, gpus: float | None) -> _Model:
    ref = entry.ref(file.folder)
    written = entry.resources.before(file.resources).gpus
    machine = costs.machine_for(gpus if written is None else written)
    parameters, sizes = costs.count_parameters(ref), tuple(catalog.input_sizes(ref))
    return _Model(entry.names, ref, machine, parameters, sizes)


def _method_of(location: str, parameters: Mapping[str, Any], names: tuple[str, ...]) -> _Method:
    built, usual = (catalog.build_method(location, given) for given in (parameters, {}))
    return _Method(names, location, built, usual, parameters_of(built))


def _survives(point: _Point, include: Sequence[Rule], exclude: Sequence[Rule]) -> bool:
    if not include and not exclude:
        return True
    names = point.names
    kept = not include or any(rule.matches(names) for rule in include)
    return kept and not any(rule.matches(names) for rule in exclude)


def _misfit(spec: TrialSpec, sizes: Sequence[int]) -> str | None:
    """Say why a group size does not fit the model; None if it does, or its sizes are not known.

    A trial that names its own modules is left to the method: it may leave out what does not fit.
    """
    size = spec.scheme.group_size
    patterns = {key: value for key, value in spec.parameters if "modules" in key}
    if size is None or patterns not in ({}, {"modules": ("*",), "skip_modules": ()}):
        return None
    odd = [inputs for inputs in sizes if inputs % size]
    listed = " and ".join(map(str, odd))
    return f"{spec.scheme}: groups of {size} do not divide {listed} inputs" if odd else None


def _planned(
    spec: TrialSpec, model: _Model, method: _Method, skip_reason: str | None = None
) -> PlannedTrial:
    units: tuple[PlannedUnit, ...] = ()
    cost_s = 0.0
    if skip_reason is None:
        units = costs.plan_units(spec, model.parameters, model.machine)
        load_s = costs.load_s(model.parameters, model.machine)
        cost_s = load_s + sum(unit.estimated_s for unit in units)
    return PlannedTrial(
        spec=spec,
        label=_label(spec, method.usual),
        skip_reason=skip_reason,
        estimated_s=round(cost_s, 3),
        priority=BASELINE_PRIORITY if spec.is_baseline else 0,
        units=units,
    )


def _baseline(spec: TrialSpec, full: _Method) -> TrialSpec:
    """The full-precision trial that `spec` is compared with."""
    return replace(
        spec,
        method=FULL_PRECISION_METHOD,
        method_version=full.built.version,
        parameters=full.parameters,
        scheme=FULL_PRECISION,
        calibration=None,
    )


def _once(trials: Iterable[PlannedTrial]) -> tuple[PlannedTrial, ...]:
    return tuple({trial.spec.key: trial for trial in trials}.values())


def canonical_scheme(scheme: QuantScheme, *, default: bool) -> QuantScheme:
    """Write out the weight grid; where weights are not quantized, it means nothing and goes.

    Args:
        scheme: As the user wrote it.
        default: Whether the method's weight grid is symmetric where the scheme does not say.
    """
    if scheme.w_bits == FULL_PRECISION_BITS:
        return replace(scheme, group_size=None, symmetric=None)
    return scheme if scheme.symmetric is not None else replace(scheme, symmetric=default)


def parameters_of(method: Any) -> Parameters:
    """All parameters of a method's instance with their values, sorted by name."""
    values = ((field.name, getattr(method, field.name)) for field in dataclasses.fields(method))
    return tuple(sorted(values))


def _label(spec: TrialSpec, default: Any) -> str:
    """A short name of a trial for people: what is as in the method's `default` is left out."""
    model = _short_model(spec.model)
    seed = f" seed{spec.seed}" if spec.seed else ""
    if spec.is_baseline:
        return f"{model} {spec.method}{seed}"
    usual: dict[str, Any] = dict(parameters_of(default))
    options = ",".join(f"{k}={v}" for k, v in spec.parameters if usual[k] != v)
    method = Path(spec.method).name + (f"({options})" if options else "")
    as_usual = spec.scheme.symmetric == default.symmetric
    scheme = replace(spec.scheme, symmetric=None) if as_usual else spec.scheme
    calibration = "" if spec.calibration is None else f" {spec.calibration}"
    return f"{model} {method} {scheme}{calibration}{seed}"


def _short_model(ref: ModelRef) -> str:
    name = Path(ref.name).name if Path(ref.name).is_absolute() else ref.name
    return name if ref.revision is None else f"{name}@{ref.revision[:8]}"
