"""A task's data from local files: `DIR/<task>/<split>.jsonl`, `.json` or `.parquet`.

Only the splits that are used are read: the one that is scored and, with examples in the prompt, the
one that they come from. docs/tasks.md has the layout of each task.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.tasks.definition import Definition, find
from dllm_sweep.shipping import local, local_folder
from dllm_sweep.spec import TaskSpec

ENDINGS = (".jsonl", ".json", ".parquet")

Rows = list[dict[str, Any]]

_MATH = ("minerva_math", "math", "hendrycks_math", "math_synthetic")
_ALIASES = {"hendrycks_math": _MATH, "openai_humaneval": ("humaneval",)}
"""Folders that hold a hub data set of this name, beside one that has the task's own name."""
_GROUPED = frozenset({"mmlu", "hendrycks_math"})
"""Data sets whose subsets are tasks of their own, each in a folder."""

_FIELDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "winogrande": {"sentence": (str,), "option1": (str,), "option2": (str,), "answer": (str,)},
    "piqa": {"goal": (str,), "sol1": (str,), "sol2": (str,), "label": (int,)},
    "ai2_arc": {"question": (str,), "choices": (dict,), "answerKey": (str,)},
    "hellaswag": {
        "activity_label": (str,),
        "ctx_a": (str,),
        "ctx_b": (str,),
        "endings": (list,),
        "label": (str, int),
    },
    "mmlu": {"question": (str,), "choices": (list,), "answer": (int,)},
    "gsm8k": {"question": (str,), "answer": (str,)},
    "hendrycks_math": {"problem": (str,), "solution": (str,)},
    "openai_humaneval": {"prompt": (str,), "test": (str,), "entry_point": (str,)},
    "mbpp": {"text": (str,), "code": (str,), "test_list": (list,)},
}
"""Fields that a row must have, by the last part of the data set's hub id."""


def present(definition: Definition, data: str | None) -> tuple[Definition, ...]:
    """The tasks to be run: of a group with local data only the members that have some or rows of
    their own.

    Raises:
        InputError: If no member has.
    """
    if data is None or not definition.members:
        return definition.single
    found = tuple(
        one for one in definition.members if one.own_rows or _place(one, data) is not None
    )
    return found or (_refuse(definition.members[0], data),)


def data_files(spec: TaskSpec) -> tuple[Path, ...]:
    """List the files of a task's local data that it uses, by their paths in `spec.data`.

    Raises:
        InputError: If one is missing.
    """
    definition = find(spec.name, anywhere=True)
    if spec.data is None or definition is None:
        return ()
    return tuple(
        path
        for one in present(definition, spec.data)
        if not one.own_rows
        for files in split_files(one, spec.data, one.shots(spec.shots)).values()
        for path in files
    )


def split_files(definition: Definition, data: str, shots: int) -> dict[str, tuple[Path, ...]]:
    """Find the files of the splits that a task uses.

    Args:
        definition: A single task.
        data: The folder with the data of one or more tasks.
        shots: Examples in the prompt; without any, their split is not needed.

    Returns:
        Files by split, by their paths where the sweep was planned; several where one split is cut
        into parts, as on the hub.

    Raises:
        InputError: If the folder or a split is missing.
    """
    folder = _place(definition, data) or _refuse(definition, data)
    wanted = [definition.evaluated_split]
    if shots and definition.example_split is not None:
        wanted.append(definition.example_split)
    found = {split: _files(folder, split) for split in dict.fromkeys(wanted)}
    for split, files in found.items():
        if not files:
            raise InputError(
                f"task {definition.name!r} needs {folder / split}.jsonl (or .json, .parquet) for"
                f" its {shots} examples in each prompt, and there is no such file"
            )
    return found


def load_rows(definition: Definition, data: str, shots: int) -> dict[str, Rows]:
    """Read the splits that a task uses and check their fields.

    Raises:
        InputError: If a file is missing, empty, cannot be read, or lacks a field.
    """
    files = split_files(definition, data, shots)
    read = {
        split: [row for part in parts for row in read_rows(part)] for split, parts in files.items()
    }
    for split, rows in read.items():
        _check_rows(definition, rows, files[split][0])
    examples = definition.example_split
    needed = definition.example_rows(shots)
    if shots and examples in read and len(read[examples]) < needed:
        raise InputError(
            f"task {definition.name!r} needs {needed} rows for {shots} examples in each prompt, and"
            f" {files[examples][0]} has {len(read[examples])}"
        )
    return read


def read_rows(path: Path) -> Rows:
    """Read rows from JSON lines, a JSON list or Parquet, or from the copy that came along.

    Raises:
        InputError: If the file cannot be read so.
    """
    kinds = {".jsonl": "JSON lines", ".json": "a JSON list", ".parquet": "Parquet"}
    try:
        rows = _read(local(path))
    except (OSError, ValueError) as error:
        kind = kinds.get(path.suffix, "JSON lines")
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be read as {kind}: {reason}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: a row is no mapping of fields to values")
    return rows


def _read(path: Path) -> Rows:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return list(pyarrow.parquet.read_table(path).to_pylist())
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json" and text.lstrip().startswith("["):
        return list(json.loads(text))
    # Not splitlines: JSON strings may hold other line ends than \n.
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _place(definition: Definition, data: str) -> Path | None:
    """The first of the places where a task's data may lie that has the split to be scored."""
    split = definition.evaluated_split
    places = dict.fromkeys(_places(definition, data))
    return next((place for place in places if _files(place, split)), None)


def _refuse(definition: Definition, data: str) -> NoReturn:
    missing = next(_places(definition, data)) / definition.evaluated_split
    raise InputError(
        f"task {definition.name!r} needs {missing}.jsonl (or .json, .parquet), and there is no"
        f" such file: put it there, or leave `data` out to take {definition.data_set[0]} from the"
        " hub"
    )


def _places(definition: Definition, data: str) -> Iterator[Path]:
    """Where a task's data may lie, relative to the folder that was named."""
    root = Path(data)
    hub_id, subset = definition.data_set
    last = hub_id.rpartition("/")[2]
    named = Path(definition.name).stem
    folders = (*_ALIASES.get(last, ()), last, "")
    if last in _GROUPED:
        yield from (root / folder / str(subset) for folder in folders)
        yield root / named
        return
    for folder in (named, *folders):
        yield root / folder
        # On the hub, a data set without subsets keeps its files in `data` or under its own name.
        for inner in ("data", last) if subset is None else (subset,):
            yield root / folder / inner


def _files(folder: Path, split: str) -> tuple[Path, ...]:
    """Files of a split: one by its name, or the parts of a Parquet data set."""
    here = local_folder(folder)
    names = [f"{split}{ending}" for ending in ENDINGS]
    whole = next((name for name in names if (here / name).is_file()), None)
    if whole is not None:
        return (folder / whole,)
    parts = sorted(here.glob(f"{split}-[0-9]*-of-[0-9]*.parquet"))
    return tuple(folder / part.name for part in parts)


def _check_rows(definition: Definition, rows: Rows, path: Path) -> None:
    if not rows:
        raise InputError(f"task {definition.name!r}: {path} has no rows")
    fields = _FIELDS.get(definition.data_set[0].rpartition("/")[2], {})
    for number, row in enumerate(rows, start=1):
        for field, kinds in fields.items():
            if not isinstance(row.get(field), kinds):
                raise InputError(_complaint(definition, path, number, field, row))


def _complaint(definition: Definition, path: Path, number: int, field: str, row: Any) -> str:
    place = f"task {definition.name!r}: row {number} of {path}"
    if field not in row:
        listed = ", ".join(sorted(row))
        return f"{place} has no field {field!r} (it has: {listed})"
    fields = _FIELDS[definition.data_set[0].rpartition("/")[2]]
    kinds = " or ".join(kind.__name__ for kind in fields[field])
    return f"{place}: field {field!r} is {type(row[field]).__name__}, not {kinds}"
