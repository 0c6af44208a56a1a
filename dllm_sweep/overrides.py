"""`--set KEY=VALUE`: values of a sweep file replaced on the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dllm_sweep.errors import InputError
from dllm_sweep.yaml_places import Document, Place, YamlProblems, load, places_in

EXAMPLE = "--set limit=20"


@dataclass(frozen=True)
class Setting:
    """One `--set`.

    Attributes:
        place: The keys down to the value; numbers are indices of lists.
        value: What it is set to.
        option: As it stood on the command line.
    """

    place: Place
    value: Any
    option: str


def read_setting(text: str) -> Setting:
    """Read `KEY=VALUE`, where KEY may be dotted (`decoding.steps`) and VALUE is YAML.

    Raises:
        InputError: If it has another form or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    steps = key.strip().split(".")
    option = f"--set {text}"
    if not equals or not all(steps):
        raise InputError(f"{option}: write KEY=VALUE, such as {EXAMPLE}")
    try:
        data = load(value).data
    except YamlProblems as error:
        _, _, problem = error.problems[0].partition(": ")
        raise InputError(f"{option}: {problem or error.problems[0]}") from error
    place = tuple(int(step) if step.isdecimal() else step for step in steps)
    return Setting(place, data, option)


def overridden(document: Document, settings: Sequence[Setting]) -> Document:
    """Give a document with `settings` in place of what it says there, the last one winning.

    Raises:
        InputError: If a setting's place is inside something that holds no keys.
    """
    data, lines = copy.deepcopy(document.data), dict(document.lines)
    options = dict(document.options)
    for setting in settings:
        place = setting.place
        _put(data, setting)
        lines = {one: line for one, line in lines.items() if one[: len(place)] != place}
        lines |= dict.fromkeys(places_in(setting.value, place), 0)
        options = {one: text for one, text in options.items() if one[: len(place)] != place}
        options[place] = setting.option
    return Document(data, lines, options)


def _put(data: Any, setting: Setting) -> None:
    *above, last = setting.place
    for depth, step in enumerate(above):
        inside = _inside(data, step)
        if inside is None and isinstance(data, dict):
            inside = data[step] = {}
        _check_holds(inside, setting, depth + 1)
        data = inside
    if isinstance(data, list) and not (isinstance(last, int) and last < len(data)):
        raise InputError(f"{setting.option}: the list has {len(data)} entries, from 0")
    data[last] = copy.deepcopy(setting.value)


def _inside(data: Any, step: str | int) -> Any:
    if isinstance(data, list):
        return data[step] if isinstance(step, int) and step < len(data) else None
    return data.get(step)


def _check_holds(inside: Any, setting: Setting, depth: int) -> None:
    if isinstance(inside, dict | list):
        return
    path = ".".join(map(str, setting.place[:depth]))
    raise InputError(f"{setting.option}: {path} of the file is no mapping and no list; set {path}")


def as_text(document: Document) -> str:
    """Write a document with overridden values as YAML, with what was overridden on top."""
    head = "".join(f"#   {' '.join(option.split())}\n" for option in document.options.values())
    body = yaml.safe_dump(document.data, sort_keys=False, allow_unicode=True, width=100)
    return f"# The sweep file with\n{head}{body}"
