"""The grid of a sweep file: its points after the rules, each with all that planning must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from dllm_sweep import catalog, costs, presets
from dllm_sweep.spec import (
    FULL_PRECISION,
    FULL_PRECISION_METHOD,
    CalibrationSpec,
    ModelRef,
    Parameters,
    ProtocolSpec,
)
from dllm_sweep.sweep_protocol import EMBEDDED_TEXT
from dllm_sweep.sweep_texts import CalibrationEntry

if TYPE_CHECKING:
    from dllm_sweep.catalog import ModelFacts
    from dllm_sweep.sweep_entries import ModelEntry
    from dllm_sweep.sweep_file import SweepFile
    from dllm_sweep.sweep_rules import Rule


@dataclass(frozen=True)
class Model:
    """A model of the file with what its trials share."""

    names: tuple[str, ...]
    ref: ModelRef
    facts: ModelFacts
    protocol: ProtocolSpec
    machine: costs.Machine
    parameters: float
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Method:
    """A method of the file, built with its parameters and with none."""

    names: tuple[str, ...]
    location: str
    built: Any
    usual: Any
    parameters: Parameters


@dataclass(frozen=True)
class Text:
    """A calibration set; None if no method needs one."""

    names: tuple[str, ...]
    spec: CalibrationSpec | None


@dataclass(frozen=True)
class Point:
    """One point of the grid."""

    model: Model
    method: Method
    scheme: str
    calibration: Text
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


def points(file: SweepFile, gpus: float | None) -> Iterator[Point]:
    """The grid after the rules; the baseline has one scheme, its own, whatever is listed."""
    models = [_model_of(entry, file, gpus) for entry in file.models]
    methods = [
        method_of(entry.location(file.folder), entry.parameters, entry.names)
        for entry in file.methods
    ]
    read = any(method.built.needs_calibration for method in methods)
    written = _written_texts(file, read=read)
    for model, method in product(models, methods):
        baseline = method.location == FULL_PRECISION_METHOD
        schemes = (str(FULL_PRECISION),) if baseline else file.schemes
        texts = written or [_preset_text(str(file.preset), model, method)]
        for scheme, text, seed in product(schemes, texts, file.seeds):
            point = Point(model, method, scheme, text, seed)
            if _survives(point, file.include, file.exclude):
                yield point


def _model_of(entry: ModelEntry, file: SweepFile, gpus: float | None) -> Model:
    ref = entry.ref(file.folder)
    written = entry.resources.before(file.resources).gpus
    parameters = costs.count_parameters(ref)
    return Model(
        names=entry.names,
        ref=ref,
        facts=catalog.facts_of(ref),
        protocol=file.protocol_for(entry),
        machine=costs.machine_for(gpus if written is None else written, parameters),
        parameters=parameters,
        sizes=tuple(catalog.input_sizes(ref)),
    )


def method_of(location: str, parameters: Mapping[str, Any], names: tuple[str, ...]) -> Method:
    """Build a method from the name by which it loads and the parameters that differ."""
    built, usual = (catalog.build_method(location, given) for given in (parameters, {}))
    return Method(names, location, built, usual, parameters_of(built))


def parameters_of(method: Any) -> Parameters:
    """All parameters of a method's instance with their values, sorted by name."""
    return tuple(sorted((field.name, getattr(method, field.name)) for field in fields(method)))


def _written_texts(file: SweepFile, *, read: bool) -> list[Text]:
    """The file's calibration sets, or the usual one; none where a preset says which."""
    if file.calibration is None and file.preset is not None:
        return []
    entries = (CalibrationEntry(),) if file.calibration is None else file.calibration
    return [Text(entry.names, entry.text(file.folder) if read else None) for entry in entries]


def _preset_text(preset: str, model: Model, method: Method) -> Text:
    """What the study calibrated a method on, as far as the model can read it."""
    spec = presets.load(preset).calibration(method.location)
    if spec is None or not method.built.needs_calibration:
        return Text((), None)
    spec = EMBEDDED_TEXT if model.facts.embedded else spec
    longest = model.facts.max_length or spec.length
    spec = catalog.resolve_calibration(replace(spec, length=min(spec.length, longest)))
    return Text((spec.source, str(spec)), spec)


def _survives(point: Point, include: Sequence[Rule], exclude: Sequence[Rule]) -> bool:
    if not include and not exclude:
        return True
    names = point.names
    kept = not include or any(rule.matches(names) for rule in include)
    return kept and not any(rule.matches(names) for rule in exclude)
