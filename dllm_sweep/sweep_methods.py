"""From a method's entry to its parameters: what the file says goes before what its preset says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dllm_sweep import catalog, presets
from dllm_sweep.errors import InputError
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings
from dllm_sweep.spec import QuantScheme
from dllm_sweep.sweep_problems import Finding

if TYPE_CHECKING:
    from dllm_sweep.sweep_entries import MethodEntry
    from dllm_sweep.sweep_file import SweepFile

_OPERANDS = {"kv": "keys and values", "qkv": "queries, keys and values"}


def settings_of(file: SweepFile, entry: MethodEntry, family: str) -> MethodSettings:
    """What the file's preset says of a method for a family; nothing without a preset."""
    if file.preset is None:
        return LEFT_OPEN
    return presets.load(file.preset).method(entry.location(file.folder), family)


def parameters_for(file: SweepFile, entry: MethodEntry, family: str) -> dict[str, Any]:
    """The parameters of a method for a family: the preset's, and over them the entry's own."""
    return dict(settings_of(file, entry, family).parameters) | entry.parameters


def families_of(file: SweepFile) -> tuple[str, ...]:
    """The families of the file's models, each once, in the order of the file."""
    refs = (model.ref(file.folder) for model in file.models)
    return tuple(dict.fromkeys(catalog.facts_of(ref).family for ref in refs))


def misfits_of(file: SweepFile) -> Iterator[Finding]:
    """What of an entry does not go together with what the preset says of its method."""
    for index, entry in enumerate(file.methods):
        location = entry.location(file.folder)
        for family in families_of(file) if file.preset else ():
            try:
                catalog.build_method(location, parameters_for(file, entry, family))
            except InputError as error:
                with_preset = f"with what preset {file.preset} says of {entry.name} on {family}"
                yield Finding(("methods", index), f"{with_preset}: {error}")


def notes_of(file: SweepFile) -> Iterator[str]:
    """Say what a preset set for each method and family, for people."""
    for entry in file.methods if file.preset else ():
        said: dict[str, list[str]] = {}
        for family in families_of(file):
            said.setdefault(_said(file, entry, family), []).append(family)
        for what, families in said.items():
            if what:
                where = f"{_called(entry)} on {' and '.join(families)}"
                yield f"preset {file.preset}: {where}: {what}"


def _said(file: SweepFile, entry: MethodEntry, family: str) -> str:
    """What a preset says of a method that the file does not say itself and that is not usual."""
    settings = settings_of(file, entry, family)
    usual = catalog.build_method(entry.location(file.folder), {})
    parts = [
        f"{name}={_shown(value)}"
        for name, value in settings.parameters
        if name not in entry.parameters and value != getattr(usual, name)
    ]
    schemes = [(QuantScheme.parse(name), settings.scheme(name)) for name in file.schemes]
    grids = any(written.symmetric != meant.symmetric for written, meant in schemes)
    if grids and settings.symmetric != usual.symmetric:
        parts.append("symmetric weight grids" if settings.symmetric else "asymmetric weight grids")
    if any(_operands(written) != _operands(meant) for written, meant in schemes):
        operands = _OPERANDS[str(settings.operands)]
        parts.append(f"{operands} rounded with the activations (-{settings.operands})")
    return ", ".join(parts)


def _operands(scheme: QuantScheme) -> tuple[int, bool]:
    return scheme.kv_bits, scheme.qkv


def _called(entry: MethodEntry) -> str:
    """An entry's name with the parameters by which entries of one method differ."""
    own = ",".join(f"{name}={_shown(value)}" for name, value in entry.parameters.items())
    return f"{entry.name}({own})" if own else entry.name


def _shown(value: object) -> str:
    if isinstance(value, list | tuple):
        return "[" + " ".join(map(str, value)) + "]"
    return str(value) if isinstance(value, float | str) else json.dumps(value)
