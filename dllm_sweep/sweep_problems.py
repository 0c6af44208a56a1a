"""Problems of a sweep file in plain words: what pydantic and our own checks found, and where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from dllm_sweep.errors import InputError, suggestion
from dllm_sweep.yaml_places import Document, Place

_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that our own checks found wrong.

    Attributes:
        below: Keys from the checked value down to what is wrong.
        message: What is wrong and what to write instead.
    """

    below: Place
    message: str


def refuse(findings: Sequence[Finding]) -> None:
    """Fail a pydantic validation with `findings`, if there are any."""
    if findings:
        raise PydanticCustomError("findings", "several findings", {"findings": findings})


@contextmanager
def refusing(*below: str | int) -> Iterator[None]:
    """Turn an InputError raised inside into a finding at the keys `below`."""
    try:
        yield
    except InputError as error:
        refuse([Finding(below, str(error))])


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """Say each problem in one line with its place, in the order of the file.

    Args:
        error: What pydantic raised for the whole file.
        model: The file's model; its fields are the keys that exist.
        document: The file, for the lines.
    """
    errors = [details for details in error.errors() if not _is_echo(details, error.errors())]
    found = [pair for details in errors for pair in _findings(details, model)]
    return tell([Finding(place, message) for place, message in found], document)


def tell(findings: Sequence[Finding], document: Document) -> list[str]:
    """Say each finding in one line with its place, in the order of the file.

    Args:
        findings: What is wrong, with places from the top of the file.
        document: The file, for the lines.
    """
    located = sorted(findings, key=lambda finding: document.line(finding.below) or 0)
    return list(dict.fromkeys(_sentence(finding, document) for finding in located))


def _is_echo(details: ErrorDetails, errors: Sequence[ErrorDetails]) -> bool:
    """Whether a list only counts as empty because none of its items is right."""
    place = details["loc"]
    return details["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in errors
    )


def _findings(details: ErrorDetails, model: type[BaseModel]) -> list[tuple[Place, str]]:
    place = tuple(details["loc"])
    if details["type"] == "findings":
        found: Sequence[Finding] = details["ctx"]["findings"]
        return [((*place, *finding.below), finding.message) for finding in found]
    return [(place, _message(details, model))]


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        keys = sorted(_keys_at(model, tuple(details["loc"])[:-1]))
        return f"unknown key {str(details['loc'][-1])!r}{suggestion(str(details['loc'][-1]), keys)}"
    if kind == "missing":
        return "is missing"
    if kind in _WANTED:
        quotes = ": put it in quotes" if kind == "string_type" and _is_scalar(value) else ""
        return f"must be {_WANTED[kind]}, not {_shown(value)}{quotes}"
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        return f"must be {words} {context[key]:g}, not {_shown(value)}"
    if kind == "too_short":
        return "is empty: name at least one"
    if kind == "literal_error":
        return f"must be {context['expected']}, not {_shown(value)}"
    return details["msg"]


def _keys_at(model: type[BaseModel], place: Place) -> set[str]:
    """The keys that exist in the mapping at `place`."""
    current = model
    for step in place:
        if isinstance(step, str) and step in current.model_fields:
            current = _model_in(current.model_fields[step].annotation) or current
    return set(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The entry model inside an annotation such as `tuple[TaskEntry, ...]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    arms = (_model_in(arm) for arm in getattr(annotation, "__args__", ()))
    return next((arm for arm in arms if arm is not None), None)


def _is_scalar(value: object) -> bool:
    return isinstance(value, int | float) or hasattr(value, "isoformat")


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return str(value) if _is_scalar(value) else repr(value)


def _path(place: Place, document: Document) -> str:
    """Write a place as `methods[1].alpha`; one thing that stands for a list has no index."""
    path = ""
    for depth, step in enumerate(place, start=1):
        if not isinstance(step, int):
            path += f".{step}"
        elif place[:depth] in document.lines:
            path += f"[{step}]"
    return path.removeprefix(".")


def _sentence(finding: Finding, document: Document) -> str:
    where, path = document.where(finding.below), _path(finding.below, document)
    message = finding.message
    start = f"{where}: " if where else ""
    joint = " " if message.startswith(("is ", "must ")) else ": "
    return f"{start}{path}{joint}{message}" if path else f"{start}{message}"
