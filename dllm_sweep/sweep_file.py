"""The sweep file: what a person writes, checked whole before anything is planned or stored.

`read` either returns a SweepFile in which every name exists and every combination makes sense,
or raises one SweepFileError with all problems, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dllm_sweep.errors import InputError, SweepFileError
from dllm_sweep.spec import (
    FULL_PRECISION_METHOD,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
)
from dllm_sweep.sweep_entries import (
    CalibrationEntry,
    Count,
    DecodingEntry,
    Entry,
    MethodEntry,
    ModelEntry,
    OutliersEntry,
    Resources,
    Seed,
    TaskEntry,
)
from dllm_sweep.sweep_problems import Finding, explain, refuse
from dllm_sweep.yaml_places import YamlProblems, load

AXES = {
    "model": "models",
    "method": "methods",
    "scheme": "schemes",
    "calibration": "calibration",
    "seed": "seeds",
}
"""The axes of the grid as rules call them, and the file's keys that span them."""


def _entry(key: str) -> BeforeValidator:
    """Let a bare text stand for a mapping with only `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _listed(value: Any) -> Any:
    """Let one thing stand for a list of it."""
    return [value] if isinstance(value, str | dict | int) else value


def _pattern(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _scheme_exists(value: str) -> str:
    try:
        return str(QuantScheme.parse(value))
    except InputError as error:
        near = _nearest_scheme(value)
        refuse([Finding((), f"{error}: did you mean {near!r}?" if near else str(error))])
        raise


def _nearest_scheme(text: str) -> str | None:
    """Put the parts of a scheme that was written in another order or form into the right one."""
    parts = re.findall(r"(?:w|a|kv|g)\d+|asym|sym|qkv", text.lower())
    order = ("w", "a", "kv", "g", "asym", "sym", "qkv")
    parts.sort(key=lambda part: order.index(part.rstrip("0123456789")))
    bits = [part for part in parts if part[0] in "wa" and part != "asym"]
    try:
        return str(
            QuantScheme.parse("-".join(["".join(bits), *(p for p in parts if p not in bits)]))
        )
    except InputError:
        return None


Patterns = Annotated[
    tuple[Annotated[str, BeforeValidator(_pattern)], ...],
    Strict(False),
    BeforeValidator(_listed),
    Field(min_length=1),
]


def _switch(value: Any) -> Any:
    """Let `false` switch something off and `true` switch it on as it is by default."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


NamedModel = Annotated[ModelEntry, _entry("name")]
NamedMethod = Annotated[MethodEntry, _entry("name")]
NamedText = Annotated[CalibrationEntry, _entry("source")]
NamedTask = Annotated[TaskEntry, _entry("name")]
SchemeName = Annotated[str, AfterValidator(_scheme_exists)]


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


def _canonical_scheme(text: str) -> str:
    try:
        return str(QuantScheme.parse(text))
    except InputError:
        return text


def names_of(value: ModelEntry | MethodEntry | CalibrationEntry | str | int) -> tuple[str, ...]:
    """What rules may call one value of an axis."""
    return (str(value),) if isinstance(value, str | int) else value.names


def _rule_meets_grid(rule: Rule, info: ValidationInfo) -> Rule:
    """Refuse a pattern that matches nothing: it is a slip of the pen."""
    findings = []
    for axis, patterns in rule.axes.items():
        names = [name for value in info.data.get(AXES[axis], ()) for name in names_of(value)]
        known = ", ".join(dict.fromkeys(names))
        findings += [
            Finding((axis,), f"{pattern!r} matches nothing in {AXES[axis]} (there are: {known})")
            for pattern in patterns
            if names and not _matches(axis, pattern, tuple(names))
        ]
    refuse(findings)
    return rule


Rules = Annotated[tuple[Annotated[Rule, AfterValidator(_rule_meets_grid)], ...], Strict(False)]


class SweepFile(Entry):
    """All that a sweep file can say. Build one with `read`."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\n\r\t]+$")]
    models: Annotated[tuple[NamedModel, ...], Strict(False), Field(min_length=1)]
    methods: Annotated[tuple[NamedMethod, ...], Strict(False), Field(min_length=1)]
    schemes: Annotated[tuple[SchemeName, ...], Strict(False)] = Field(
        default=(), validate_default=True
    )
    calibration: Annotated[
        tuple[NamedText, ...], Strict(False), BeforeValidator(_listed), Field(min_length=1)
    ] = Field(default=({},), validate_default=True)
    seeds: Annotated[tuple[Seed, ...], Strict(False), Field(min_length=1)] = (0,)
    tasks: Annotated[tuple[NamedTask, ...], Strict(False), Field(min_length=1)]
    limit: Count | None = None
    draws: Count = TaskSpec.draws
    decoding: DecodingEntry = DecodingEntry()
    outliers: Annotated[OutliersEntry | None, BeforeValidator(_switch)] = Field(
        default=True, validate_default=True
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    include: Rules = ()
    exclude: Rules = ()
    resources: Resources = Resources()
    _folder: Path = PrivateAttr(default=Path())
    _text: str = PrivateAttr(default="")

    @field_validator("schemes")
    @classmethod
    def _schemes_are_there(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        others = [m.name for m in info.data.get("methods", ()) if m.name != FULL_PRECISION_METHOD]
        if others and not value:
            fault = f"is missing: {others[0]} needs at least one, such as w4a16-g128"
            refuse([Finding((), fault)])
        return value

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, value: tuple[TaskEntry, ...]) -> tuple[TaskEntry, ...]:
        first: dict[str, TaskEntry] = {}
        clash = [
            Finding((index,), f"{task.name} is named before with other settings: keep one")
            for index, task in enumerate(value)
            if first.setdefault(task.name, task) != task
        ]
        refuse(clash)
        return tuple(first.values())

    @property
    def folder(self) -> Path:
        """Where the file lies: what paths in it are relative to."""
        return self._folder

    @property
    def text(self) -> str:
        """The file as written."""
        return self._text

    @property
    def protocol(self) -> ProtocolSpec:
        """The evaluation that all trials of this file share, its tasks sorted by name."""
        tasks = (task.spec(self.limit, self.draws, self.folder) for task in self.tasks)
        return ProtocolSpec(
            tasks=tuple(sorted(tasks, key=lambda task: task.name)),
            decoding=self.decoding.spec(),
            outliers=None if self.outliers is None else self.outliers.spec(self.folder),
            dtype=self.dtype,
        )


def read(path: Path | str) -> SweepFile:
    """Read and check a sweep file.

    Raises:
        SweepFileError: With one line for every problem in it.
    """
    return parse(_read_text(Path(path)), Path(path))


def parse(text: str, path: Path) -> SweepFile:
    """Check the text of a sweep file as if it stood at `path`.

    Raises:
        SweepFileError: With one line for every problem in it.
    """
    try:
        document = load(text)
    except YamlProblems as error:
        raise SweepFileError(str(path), error.problems) from error
    data = document.data
    if not isinstance(data, dict):
        what = "the file is empty" if data is None else "the file is not a mapping"
        hint = "`dllm-sweep init` writes one to start from"
        raise SweepFileError(str(path), [f"{what}: {hint}"])
    folder = path.absolute().parent
    try:
        file = SweepFile.model_validate({"name": path.stem} | data, context={"folder": folder})
    except ValidationError as error:
        raise SweepFileError(str(path), explain(error, SweepFile, document)) from None
    file._folder, file._text = folder, text
    return file


def stored_resources(text: str) -> Resources:
    """The resources that a sweep file's text asks for; the rest of it is not checked again."""
    data = load(text).data
    written = data.get("resources") if isinstance(data, dict) else None
    return Resources.model_validate(written or {})


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problem = "there is no such file"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 text (byte {error.start})"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    raise SweepFileError(str(path), [problem])
