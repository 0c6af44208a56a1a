"""Rules of a sweep file: which points of the grid are meant."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationInfo, model_validator

from dllm_sweep.errors import InputError
from dllm_sweep.spec import QuantScheme
from dllm_sweep.sweep_entries import Entry, MethodEntry, ModelEntry
from dllm_sweep.sweep_problems import Finding, refuse
from dllm_sweep.sweep_texts import CalibrationEntry

AXES = {
    "model": "models",
    "method": "methods",
    "scheme": "schemes",
    "calibration": "calibration",
    "seed": "seeds",
}
"""The axes of the grid as rules call them, and the file's keys that span them."""


def listed(value: Any) -> Any:
    """Let one thing stand for a list of it."""
    return [value] if isinstance(value, str | dict | int) else value


def _pattern(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Patterns = Annotated[
    tuple[Annotated[str, BeforeValidator(_pattern)], ...],
    Strict(False),
    BeforeValidator(listed),
    Field(min_length=1),
]


class Rule(Entry):
    """Which points of the grid are meant: each key that is written must match."""

    model: Patterns | None = None
    method: Patterns | None = None
    scheme: Patterns | None = None
    calibration: Patterns | None = None
    seed: Patterns | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Rule:
        if not self.axes:
            refuse([Finding((), f"is an empty rule: name one of {', '.join(AXES)}")])
        return self

    @property
    def axes(self) -> dict[str, tuple[str, ...]]:
        """The patterns that are written, by axis."""
        return {axis: patterns for axis, patterns in self if patterns is not None}

    def matches(self, names: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether every axis of the rule matches one of a point's names on that axis."""
        return all(
            any(_matches(axis, pattern, names[axis]) for pattern in patterns)
            for axis, patterns in self.axes.items()
        )


def _matches(axis: str, pattern: str, names: tuple[str, ...]) -> bool:
    """Whether a pattern (`*` and `?` are wild) matches one of the names on an axis."""
    if axis == "scheme":
        pattern = _canonical_scheme(pattern)
    return any(fnmatchcase(name, pattern) for name in names)


def scheme_name(text: str) -> str:
    """What the file calls a scheme: its canonical name, in which a written `-kv16` stays.

    Beside a preset it means something: attention rounds nothing, whatever the preset says.

    Raises:
        InputError: If it is no scheme.
    """
    bits, dash, rest = str(QuantScheme.parse(text)).partition("-")
    return f"{bits}-kv16{dash}{rest}" if "-kv16" in text.lower() else f"{bits}{dash}{rest}"


def _canonical_scheme(text: str) -> str:
    try:
        return scheme_name(text)
    except InputError:
        return text


def names_of(value: ModelEntry | MethodEntry | CalibrationEntry | str | int) -> tuple[str, ...]:
    """What rules may call one value of an axis."""
    return (str(value),) if isinstance(value, str | int) else value.names


def _rule_meets_grid(rule: Rule, info: ValidationInfo) -> Rule:
    """Refuse a pattern that matches nothing: it is a slip of the pen.

    Not where `--set` has replaced what the rule was written for: it is then without effect.
    """
    findings = []
    replaced = info.context["set"] if info.context else ()
    for axis, patterns in rule.axes.items():
        if AXES[axis] in replaced:
            continue
        names = [name for value in info.data.get(AXES[axis]) or () for name in names_of(value)]
        known = ", ".join(dict.fromkeys(names))
        findings += [
            Finding((axis,), f"{pattern!r} matches nothing in {AXES[axis]} (there are: {known})")
            for pattern in patterns
            if names and not _matches(axis, pattern, tuple(names))
        ]
    refuse(findings)
    return rule


Rules = Annotated[tuple[Annotated[Rule, AfterValidator(_rule_meets_grid)], ...], Strict(False)]
