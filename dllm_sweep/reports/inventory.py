"""What a sweep file can name, with what a person must know to choose."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields

from dllm_sweep import catalog, plugins, presets
from dllm_sweep.errors import SweepError
from dllm_sweep.evaluation.tasks import known_tasks
from dllm_sweep.presets.base import LEFT_OPEN, MethodSettings
from dllm_sweep.reports.listing import Listing
from dllm_sweep.spec import SCHEME_FORM, CalibrationSpec


def inventory(kind: str) -> tuple[Listing, str]:
    """List one kind of names, and say what else is legal.

    Args:
        kind: `models`, `methods`, `schemes`, `tasks`, `calibrations`, `maskings` or
            `presets`.
    """
    return _KINDS[kind]()


def _models() -> tuple[Listing, str]:
    from dllm_sweep.costs import count_parameters
    from dllm_sweep.spec import ModelRef

    rows = tuple(
        (name, f"{count_parameters(ModelRef(name=name)) / 1e6:.1f} million", "embedded")
        for name in catalog.names("model")
    )
    note = "also: a folder with config.json, or a hub id such as GSAI-ML/LLaDA-8B-Base@REVISION"
    return Listing(("model", "parameters", "where"), rows), note


def _methods() -> tuple[Listing, str]:
    rows = tuple(_method(name) for name in catalog.names("method"))
    note = "also: a class of your own, as path/to/file.py:Class (relative to the sweep file)"
    return Listing(("method", "calibration", "parameters", "about"), rows), note


def _method(name: str) -> tuple[str, str, str, str]:
    try:
        method = catalog.build_method(name, {})
    except (SweepError, ImportError) as error:
        return name, "", "", f"cannot be used: {error}"
    options = ", ".join(f"{field.name}={getattr(method, field.name)}" for field in fields(method))
    module = inspect.getmodule(type(method))
    about = (inspect.getdoc(module) or "").partition("\n")[0]
    return name, "needed" if method.needs_calibration else "not read", options, about


def _schemes() -> tuple[Listing, str]:
    note = f"any {SCHEME_FORM} with 2 to 8 bits, or 16 for none"
    return Listing(("scheme", "about"), catalog.EXAMPLE_SCHEMES), note


def _tasks() -> tuple[Listing, str]:
    rows = tuple(known_tasks().items())
    return Listing(("task", "data"), rows), "also: any task of lm-eval, by its name there"


def _calibrations() -> tuple[Listing, str]:
    rows = tuple((name, "embedded") for name in catalog.names("calibration"))
    maskings = ", ".join(catalog.names("masking"))
    note = f"also: a local file or folder, or a hub data set; masking is one of {maskings}"
    return Listing(("calibration", "where"), rows), note


def _maskings() -> tuple[Listing, str]:
    rows = tuple(_masking(name) for name in catalog.names("masking"))
    return Listing(("masking", "options", "about"), rows), "what each is for: docs/calibration.md"


def _masking(name: str) -> tuple[str, str, str]:
    mode = plugins.load("masking", name)
    about = (inspect.getdoc(inspect.getmodule(type(mode))) or "").partition("\n")[0]
    return name, ", ".join(mode.options), about


def _presets() -> tuple[Listing, str]:
    """One row for each method and each setup of it, with the families that share it."""
    rows = tuple(row for name in catalog.names("preset") for row in _preset(name))
    columns = ("preset", "method", "families", "weights", "attention", "parameters", "calibration")
    return Listing(columns, rows), "what a sweep file says itself goes before: docs/presets.md"


def _preset(name: str) -> Iterator[tuple[str, ...]]:
    preset = presets.load(name)
    for method in catalog.names("method"):
        shared: dict[tuple[MethodSettings, CalibrationSpec | None], list[str]] = {}
        for family in catalog.names("model family"):
            setup = preset.method(method, family), preset.calibration(method, family)
            shared.setdefault(setup, []).append(family)
        for (settings, text), families in shared.items():
            if settings != LEFT_OPEN:
                yield name, method, ", ".join(families), *_setup(settings), str(text or "")


def _setup(settings: MethodSettings) -> tuple[str, str, str]:
    weights = {None: "", True: "symmetric", False: "asymmetric"}[settings.symmetric]
    parameters = ", ".join(f"{key}={value}" for key, value in settings.parameters)
    return weights, settings.operands or "", parameters


_KINDS: dict[str, Callable[[], tuple[Listing, str]]] = {
    "models": _models,
    "methods": _methods,
    "schemes": _schemes,
    "tasks": _tasks,
    "calibrations": _calibrations,
    "maskings": _maskings,
    "presets": _presets,
}
