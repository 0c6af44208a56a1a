"""The grid of a sweep file: its points after the rules, each with all that planning must know."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from dllm_sweep import catalog, costs, presets
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings
from dllm_sweep.spec import (
    FULL_PRECISION,
    FULL_PRECISION_METHOD,
    CalibrationSpec,
    ModelRef,
    Parameters,
    ProtocolSpec,
)
from dllm_sweep.sweep_methods import parameters_for, settings_of
from dllm_sweep.sweep_protocol import EMBEDDED_TEXT
from dllm_sweep.sweep_texts import CalibrationEntry

if TYPE_CHECKING:
    from dllm_sweep.catalog import ModelFacts
    from dllm_sweep.sweep_entries import MethodEntry, ModelEntry
    from dllm_sweep.sweep_file import SweepFile
    from dllm_sweep.sweep_rules import Rule
    from dllm_sweep.yaml_places import Place


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
    """A method of the file for one family of models.

    Attributes:
        names: What rules may call it.
        location: The name by which it loads.
        built: With its parameters: the file's own, and the preset's where the file says nothing.
        usual: With none.
        parameters: All of them with their values.
        settings: What the preset says of it.
        own_modules: Whether the file itself says which modules it quantizes.
    """

    names: tuple[str, ...]
    location: str
    built: Any
    usual: Any
    parameters: Parameters
    settings: MethodSettings = LEFT_OPEN
    own_modules: bool = False


@dataclass(frozen=True)
class Text:
    """A calibration set.

    Attributes:
        names: What rules may call it.
        spec: What it is; None if no method needs one.
        place: Where it stands in the file; empty if it does not.
    """

    names: tuple[str, ...]
    spec: CalibrationSpec | None
    place: Place = ()


@dataclass(frozen=True)
class Point:
    """One point of the grid.

    Attributes:
        model: Its model.
        method: Its method.
        scheme: As the file writes it.
        calibration: What the method sees.
        seed: Its seed.
        entries: Places in the file of the entries that it comes from.
    """

    model: Model
    method: Method
    scheme: str
    calibration: Text
    seed: int
    entries: tuple[Place, ...] = field(compare=False)

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
    methods = _methods_of(file, [model.facts.family for model in models])
    read = any(method.built.needs_calibration for method in methods.values())
    written = _written_texts(file, read=read)
    for (place, model), index in product(enumerate(models), range(len(file.methods))):
        method = methods[model.facts.family, index]
        baseline = method.location == FULL_PRECISION_METHOD
        schemes = (str(FULL_PRECISION),) if baseline else file.schemes
        texts = _texts_for(file, model, method, written)
        for (at, scheme), text, seed in product(enumerate(schemes), texts, file.seeds):
            entries: list[Place] = [("methods", index), ("models", place)]
            entries += [] if baseline else [("schemes", at)]
            entries += [text.place] if text.place and method.built.needs_calibration else []
            point = Point(model, method, scheme, text, seed, tuple(entries))
            if _survives(point, file.include, file.exclude):
                yield point


def _methods_of(file: SweepFile, families: Sequence[str]) -> dict[tuple[str, int], Method]:
    """The file's methods by family and place: a preset may set them up for each family."""
    return {
        (family, index): _method_for(file, entry, family)
        for family in dict.fromkeys(families)
        for index, entry in enumerate(file.methods)
    }


def _method_for(file: SweepFile, entry: MethodEntry, family: str) -> Method:
    parameters = parameters_for(file, entry, family)
    return replace(
        method_of(entry.location(file.folder), parameters, entry.names),
        settings=settings_of(file, entry, family),
        own_modules=not entry.parameters.keys().isdisjoint(("modules", "skip_modules")),
    )


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
    """The file's calibration sets as they are without a preset; the usual one if it has none."""
    entries = (CalibrationEntry(),) if file.calibration is None else file.calibration
    return [
        Text(
            entry.names,
            entry.text(file.folder) if read else None,
            () if file.calibration is None else ("calibration", index),
        )
        for index, entry in enumerate(entries)
    ]


def _texts_for(file: SweepFile, model: Model, method: Method, written: list[Text]) -> list[Text]:
    """The calibration sets of a method, on the preset's text where the file names none."""
    if file.preset is None:
        return written
    own = _preset_text(file.preset, model, method)
    if file.calibration is None:
        return [own]
    pairs = zip(file.calibration, written, strict=True)
    return [_on_text_of(own.spec, entry, text) for entry, text in pairs]


def _on_text_of(spec: CalibrationSpec | None, entry: CalibrationEntry, text: Text) -> Text:
    """A written set on a preset's text, if it does not name one itself."""
    if spec is None or entry.names_text:
        return text
    spec = entry.over(spec)
    return replace(text, names=(*text.names, spec.source, str(spec)), spec=spec)


def _preset_text(preset: str, model: Model, method: Method) -> Text:
    """What the study calibrated a method on, as far as the model can read it."""
    spec = presets.load(preset).calibration(method.location, model.facts.family)
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
