"""What a lint says, and safe ways to look into a file that may be wrong anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dllm_sweep.yaml_places import Place


@dataclass(frozen=True)
class Found:
    """One thing that is wrong.

    Attributes:
        place: Where in the file.
        problem: What is wrong there, and what would come of it.
        fix: What to write instead.
    """

    place: Place
    problem: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, as it is reported.

    Attributes:
        file: The file as it was named.
        line: Its line, counted from 1; None if the place is nowhere in the text.
        lint: Name of the lint, as docs/clusters/checks.md lists it.
        place: The place in words, such as `provider.region`.
        problem: What is wrong, and what would come of it.
        fix: What to write instead.
    """

    file: str
    line: int | None
    lint: str
    place: str
    problem: str
    fix: str


def mapping(value: Any) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    """`value` if it is a list, else an empty one."""
    return value if isinstance(value, list | tuple) else ()


def integer(value: Any) -> int | None:
    """`value` if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text(value: Any) -> str:
    """`value` if it is text, else an empty one."""
    return value if isinstance(value, str) else ""


def inside(data: Any, *keys: str | int) -> Any:
    """The value at `keys` from the top of `data`, or None."""
    for key in keys:
        listed = isinstance(data, list) and isinstance(key, int) and key < len(data)
        if not listed and not (isinstance(data, Mapping) and key in data):
            return None
        data = data[key]
    return data


def words(place: Place) -> str:
    """A place as people write it: `setup_commands[0]`, `provider.region`."""
    out = ""
    for part in place:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out or "the file"
