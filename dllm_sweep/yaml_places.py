"""Read YAML and remember where everything stands, so that a problem can name its line.

Stricter than YAML in one way (a key written twice is a problem, not a silent override) and
kinder in another (`1e-2` is a number, as people expect).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Keys and indices from the top of a document down to a value."""


@dataclass(frozen=True)
class Document:
    """What a YAML text says, and the line of every value.

    Attributes:
        data: Plain Python values.
        lines: Line of each place, counted from 1; a mapping's entry stands where its key does. 0
            for what stands in no line of the text.
        options: Places whose values come from the command line, with what was written there.
    """

    data: Any
    lines: dict[Place, int]
    options: Mapping[Place, str] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """The line of `place`, or of the nearest place around it; None if the text has neither."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines[place] if place else None

    def where(self, place: Place) -> str:
        """Say where `place` was written: `line 3`, or the options that set it; empty if nowhere."""
        around = [place[:depth] for depth in range(len(place), 0, -1)]
        option = next((self.options[one] for one in around if one in self.options), None)
        inside = [text for one, text in self.options.items() if one[: len(place)] == place]
        if option is not None or inside:
            return option or " ".join(inside)
        line = self.line(place)
        return f"line {line}" if line else ""


class YamlProblems(Exception):
    """A text that is not YAML, or says the same thing twice: one line for each problem."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problems))


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads numbers such as 1e-2, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load(text: str) -> Document:
    """Read one YAML document.

    Raises:
        YamlProblems: If the text is not one YAML document or repeats a key.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        return Document(None, {}) if root is None else _document(loader, root)
    except yaml.YAMLError as error:
        raise YamlProblems([_explain(error)]) from error


def load_all(text: str) -> list[Document]:
    """Read a YAML text of several documents; lines are counted through the whole text.

    Raises:
        YamlProblems: If the text is not YAML or repeats a key.
    """
    documents = []
    try:
        loader = _Loader(text)
        while loader.check_node():
            root = loader.get_node()
            if root is not None:
                documents.append(_document(loader, root))
    except yaml.YAMLError as error:
        raise YamlProblems([_explain(error)]) from error
    return documents


def places_in(data: Any, place: Place) -> Iterator[Place]:
    """All places from `place` down in plain values."""
    yield place
    if isinstance(data, dict):
        parts: Sequence[tuple[str | int, Any]] = [(str(key), one) for key, one in data.items()]
    else:
        parts = list(enumerate(data)) if isinstance(data, list) else []
    for key, part in parts:
        yield from places_in(part, (*place, key))


def _document(loader: _Loader, root: yaml.Node) -> Document:
    nodes = dict(_walk(root, (), set()))
    repeated = [line for node in nodes.values() for line in _repeated_keys(node)]
    if repeated:
        raise YamlProblems(repeated)
    return Document(loader.construct_document(root), _lines(root))


def _walk(node: yaml.Node, place: Place, seen: set[int]) -> Iterator[tuple[Place, yaml.Node]]:
    """All nodes from `node` down with their places; what an alias repeats comes once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    yield place, node
    for key, child in _children(node):
        yield from _walk(child, (*place, key), seen)


def _children(node: yaml.Node) -> list[tuple[str | int, yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        return list(enumerate(node.value))
    if isinstance(node, yaml.MappingNode):
        return [(str(key.value), value) for key, value in node.value]
    return []


def _lines(root: yaml.Node) -> dict[Place, int]:
    lines = {place: node.start_mark.line + 1 for place, node in _walk(root, (), set())}
    for place, node in _walk(root, (), set()):
        if isinstance(node, yaml.MappingNode):
            keys = {(*place, str(key.value)): key.start_mark.line + 1 for key, _ in node.value}
            lines.update(keys)
    return lines


def _repeated_keys(node: yaml.Node) -> Iterator[str]:
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        name = str(key.value)
        if name in first and name != "<<":
            yield f"line {line}: key {name!r} is written twice (first in line {first[name]})"
        first.setdefault(name, line)


def _explain(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or " ".join(str(error).split())
    if mark is None:
        return f"not YAML: {what}"
    return f"line {mark.line + 1}, column {mark.column + 1}: not YAML: {what}"
