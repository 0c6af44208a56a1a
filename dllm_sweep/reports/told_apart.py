"""What tells the trials of a board apart: axes, and of a method's parameters those that differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
"""A row of a view over trials, with `method`, `parameters` (JSON), `calibration` and `seed`."""

AXES = ("parameters", "calibration", "seed")


def differing_axes(rows: Sequence[Row], axes: Sequence[str] = AXES) -> list[str]:
    """Give those of `axes` on which two trials of one method differ.

    Baselines have no calibration: they differ from no method.
    """
    return [axis for axis in axes if any(len(v) > 1 for v in _values(rows, axis).values())]


def axis_texts(rows: Sequence[Row], axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Write each row's values on some axes.

    Of `parameters` only those are written in which trials of the row's method differ, as
    `damping=0.02 skip_modules=["*.q_proj"]`.
    """
    varied = _varied(rows)
    return [tuple(_text(row, axis, varied) for axis in axes) for row in rows]


def _text(row: Row, axis: str, varied: Mapping[str, Sequence[str]]) -> str:
    if axis != "parameters":
        return "-" if row[axis] is None else str(row[axis])
    given = json.loads(row["parameters"])
    names = [name for name in varied[row["method"]] if name in given]
    return " ".join(f"{name}={json.dumps(given[name])}" for name in names) or "-"


def _varied(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The names of the parameters in which trials of each method differ."""
    found = {}
    for method, texts in _values(rows, "parameters").items():
        every = [json.loads(text) for text in texts]
        names = sorted({name for one in every for name in one})
        found[method] = [name for name in names if len({_key(one, name) for one in every}) > 1]
    return found


def _key(parameters: Mapping[str, Any], name: str) -> str:
    return json.dumps(parameters[name]) if name in parameters else ""


def _values(rows: Sequence[Row], axis: str) -> dict[str, set[Any]]:
    """The values that trials of each method have on an axis."""
    seen: dict[str, set[Any]] = {}
    for row in rows:
        seen.setdefault(row["method"], set()).add(row[axis])
    return seen
