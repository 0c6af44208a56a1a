"""A sweep file becomes a plan: the grid of trials, each canonical, each once, each with a reason.

Two points of the grid that mean the same work get the same spec and so the same key: axes that a
method does not read are dropped, defaults are written out, lists are sorted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep import catalog, costs, dead_ends
from dllm_sweep.dead_ends import Skip
from dllm_sweep.errors import InputError
from dllm_sweep.grid import Method, Model, Point, method_of, parameters_of, points
from dllm_sweep.records import OPEN_STATES, PlannedTrial, PlannedUnit, TrialRow
from dllm_sweep.spec import (
    FULL_PRECISION,
    FULL_PRECISION_BITS,
    FULL_PRECISION_METHOD,
    ModelRef,
    QuantScheme,
    TrialSpec,
)
from dllm_sweep.sweep_methods import notes_of
from dllm_sweep.sweep_protocol import fits_of

if TYPE_CHECKING:
    from dllm_sweep.sweep_file import SweepFile

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
        notes: What a preset set for each method, and where it was made to fit a model, for people.
    """

    name: str
    source: str
    trials: tuple[PlannedTrial, ...]
    merged: tuple[str, ...]
    added: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def protocol_keys(self) -> frozenset[str]:
        """The protocols of its trials: one for each family, and for each choice of tasks."""
        return frozenset(trial.spec.protocol.key for trial in self.trials)


def make_plan(file: SweepFile, *, gpus: float | None = None) -> Plan:
    """Plan a sweep: the same file gives the same plan, and equal work has one key everywhere.

    Args:
        file: The sweep file.
        gpus: GPUs of a worker where the file does not say; None looks whether this machine has
            any. Estimates and shards depend on it, keys do not.

    Raises:
        InputError: If the rules leave nothing of the grid.
        SweepFileError: If nothing can run of a scheme, a method, a text or a model of the file.
    """
    tried = list(_tried(file, gpus))
    wanted = [(point, trial) for point, trial, _ in tried]
    if not wanted:
        raise InputError(f"sweep {file.name!r}: include and exclude leave no trial: relax a rule")
    skips = [(point.entries, skip) for point, _, skip in tried]
    file.refuse(dead_ends.findings_of(skips, file.replaced))
    full = method_of(FULL_PRECISION_METHOD, {}, ())
    compared = {_baseline(trial.spec, full): point.model for point, trial in wanted if _runs(trial)}
    named = {trial.spec.key for _, trial in wanted if trial.spec.is_baseline}
    baselines = _once(_planned(spec, model, full) for spec, model in compared.items())
    others = _once(trial for _, trial in wanted if not trial.spec.is_baseline)
    labels = Counter(trial.label for trial in (*baselines, *others))
    baselines, others = _told_apart(baselines, labels), _told_apart(others, labels)
    times = Counter(trial.spec.key for _, trial in wanted)
    fits = [note for model in file.models for note in fits_of(file, model)]
    return Plan(
        name=file.name,
        source=file.text,
        trials=(*baselines, *others),
        merged=tuple(trial.label for trial in others if times[trial.spec.key] > 1),
        added=tuple(trial.label for trial in baselines if trial.spec.key not in named),
        notes=tuple(dict.fromkeys((*notes_of(file), *fits))),
    )


def check_data(plan: Plan, stored: Sequence[TrialRow] = ()) -> None:
    """Make sure that all tasks of a plan have their data, before anything is stored or started.

    Args:
        plan: The plan.
        stored: What the store has of it: trials that are over there ask for no data.

    Raises:
        InputError: It names the first task without, and what to do.
    """
    over = {row.key for row in stored if row.state not in OPEN_STATES}
    trials = [one for one in plan.trials if _runs(one) and one.spec.key not in over]
    tasks = {task for trial in trials for task in trial.spec.protocol.tasks}
    for task in sorted(tasks, key=lambda task: task.name):
        catalog.check_data(task)


def _runs(trial: PlannedTrial) -> bool:
    return trial.skip_reason is None


def _tried(
    file: SweepFile, gpus: float | None
) -> Iterator[tuple[Point, PlannedTrial, Skip | None]]:
    """The canonical trials of the grid: nothing in their specs that does not change the work."""
    for point in points(file, gpus):
        built = point.method.built
        scheme = point.method.settings.scheme(point.scheme)
        scheme = canonical_scheme(scheme, default=built.symmetric)
        made = point.model.facts.quantized
        if made is not None and point.method.location == FULL_PRECISION_METHOD:
            scheme = QuantScheme.parse(made.scheme)
        spec = TrialSpec(
            model=point.model.ref,
            method=point.method.location,
            method_version=built.version,
            parameters=point.method.parameters,
            scheme=scheme,
            calibration=point.calibration.spec if built.needs_calibration else None,
            protocol=point.model.protocol,
            seed=point.seed,
        )
        skip = _skip(spec, point)
        reason = None if skip is None else skip.reason
        yield point, _planned(spec, point.model, point.method, reason), skip


def _skip(spec: TrialSpec, point: Point) -> Skip | None:
    """Say why a trial cannot run; None if it can, as far as is known."""
    method, model = point.method.built, point.model
    reasons = (
        (None if spec.is_baseline else method.refusal(spec.scheme), "schemes"),
        (_quantized_already(spec, model), "models"),
        (_unreadable(spec, model), "calibration"),
        (catalog.misfit(method, spec.scheme, model.facts), "methods"),
        (_odd_groups(spec, point), "schemes"),
    )
    return next((Skip(reason, key) for reason, key in reasons if reason is not None), None)


def _quantized_already(spec: TrialSpec, model: Model) -> str | None:
    made = model.facts.quantized
    if made is None or spec.is_baseline:
        return None
    return (
        f"{_short_model(model.ref)} is quantized already ({made}): the method fp evaluates it; for"
        " another method name the model that it was made from"
    )


def _unreadable(spec: TrialSpec, model: Model) -> str | None:
    """Say why a model cannot be calibrated on a text; None if it can."""
    text, longest = spec.calibration, model.facts.max_length
    if text is None:
        return None
    if longest is not None and text.length > longest:
        return (
            f"calibration texts of {text.length} tokens: {model.ref.name} reads {longest}; write a"
            f" `length` of at most {longest} in `calibration`"
        )
    reason = catalog.calibration_refusal(text, model.facts)
    return None if reason is None else f"calibration {text}: {reason}"


def _odd_groups(spec: TrialSpec, point: Point) -> str | None:
    """Say why a group size does not fit the model; None if it does, or its sizes are not known.

    Where the file itself names modules it is left to the method: they may leave out what does not
    fit. What a preset leaves out shares its inputs with modules that it keeps.
    """
    size = spec.scheme.group_size
    if size is None or point.method.own_modules or spec.is_baseline:
        return None
    odd = [inputs for inputs in point.model.sizes if inputs % size]
    listed = " and ".join(map(str, odd))
    return f"{spec.scheme}: groups of {size} do not divide {listed} inputs" if odd else None


def _planned(
    spec: TrialSpec, model: Model, method: Method, skip_reason: str | None = None
) -> PlannedTrial:
    units: tuple[PlannedUnit, ...] = ()
    cost_s = 0.0
    if skip_reason is None:
        longest = model.facts.max_length
        units = costs.plan_units(spec, model.parameters, model.machine, longest)
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


def _baseline(spec: TrialSpec, full: Method) -> TrialSpec:
    """The full-precision trial that `spec` is compared with; itself for a model that was saved
    quantized, whose trial has the scheme of what it evaluates."""
    if spec.is_baseline:
        return spec
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


def _told_apart(
    trials: Iterable[PlannedTrial], labels: Mapping[str, int]
) -> tuple[PlannedTrial, ...]:
    """Put the beginning of the key behind labels that several trials have: those of models or
    methods whose files have one name in two folders, say."""
    return tuple(
        trial
        if labels[trial.label] == 1
        else replace(trial, label=f"{trial.label} [{trial.spec.key[:8]}]")
        for trial in trials
    )


def canonical_scheme(scheme: QuantScheme, *, default: bool) -> QuantScheme:
    """Write out the weight grid; where weights are not quantized, it means nothing and goes.

    So do bits of keys and values that `-qkv` gives them anyway.

    Args:
        scheme: As the user wrote it.
        default: Whether the method's weight grid is symmetric where the scheme does not say.
    """
    if scheme.qkv and scheme.kv_bits == scheme.a_bits:
        scheme = replace(scheme, kv_bits=FULL_PRECISION_BITS)
    if scheme.w_bits == FULL_PRECISION_BITS:
        return replace(scheme, group_size=None, symmetric=None)
    return scheme if scheme.symmetric is not None else replace(scheme, symmetric=default)


def _label(spec: TrialSpec, default: Any) -> str:
    """A short name of a trial for people: what is as in the method's `default` is left out."""
    model = _short_model(spec.model)
    seed = f" seed{spec.seed}" if spec.seed else ""
    if spec.is_baseline:
        saved = "" if spec.scheme.is_full_precision else f" {spec.scheme}"
        return f"{model} {spec.method}{saved}{seed}"
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
