"""The sweep file: what a person writes, checked whole before anything is planned or stored.

`read` either returns a SweepFile in which every name exists and every combination makes sense,
or raises one SweepFileError with all problems, each with its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    SecretStr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from dllm_sweep import catalog
from dllm_sweep.errors import InputError, SweepFileError
from dllm_sweep.overrides import as_text, overridden, read_setting
from dllm_sweep.spec import FULL_PRECISION_METHOD, ProtocolSpec, QuantScheme
from dllm_sweep.stored import beside, holds_password, without_passwords
from dllm_sweep.sweep_entries import Count, Entry, MethodEntry, ModelEntry, Resources, Seed
from dllm_sweep.sweep_methods import misfits_of
from dllm_sweep.sweep_problems import Finding, explain, refuse, refusing, tell
from dllm_sweep.sweep_protocol import findings_of, protocol_of
from dllm_sweep.sweep_rules import Rules, listed, scheme_name
from dllm_sweep.sweep_tasks import DecodingEntry, Estimator, TaskEntry, folder_exists
from dllm_sweep.sweep_texts import CalibrationEntry, OutliersEntry
from dllm_sweep.yaml_places import Document, YamlProblems, load


def _entry(key: str) -> BeforeValidator:
    """Let a bare text stand for a mapping with only `key`."""
    return BeforeValidator(lambda value: {key: value} if isinstance(value, str) else value)


def _scheme_exists(value: str) -> str:
    try:
        return scheme_name(value)
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


def _switch(value: Any) -> Any:
    """Let `false` switch something off and `true` switch it on as it is by default."""
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


NamedModel = Annotated[ModelEntry, _entry("name")]
NamedMethod = Annotated[MethodEntry, _entry("name")]
NamedText = Annotated[CalibrationEntry, _entry("source")]
NamedTask = Annotated[TaskEntry, _entry("name")]
Texts = Annotated[
    tuple[NamedText, ...], Strict(False), BeforeValidator(listed), Field(min_length=1)
]
SchemeName = Annotated[str, AfterValidator(_scheme_exists)]


def _store_is_an_address(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        from dllm_sweep.db.engines import parse_url
        from dllm_sweep.errors import StoreError

        try:
            parse_url(value.get_secret_value())
        except StoreError as error:
            refuse([Finding((), str(error))])
    return value


def _files_are_found_from_anywhere(value: str | None) -> str | None:
    """`resume` and `gc` know the text of the file, but not the folder that it lay in."""
    if value is None or "://" in value or Path(value).expanduser().is_absolute():
        return value
    refuse([Finding((), f"{value!r} must be a whole path, or a URL such as s3://bucket/sweeps")])
    return None


class SweepFile(Entry):
    """All that a sweep file can say. Build one with `read`."""

    name: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\n\r\t]+$")]
    models: Annotated[tuple[NamedModel, ...], Strict(False), Field(min_length=1)]
    methods: Annotated[tuple[NamedMethod, ...], Strict(False), Field(min_length=1)]
    schemes: Annotated[tuple[SchemeName, ...], Strict(False)] = Field(
        default=(), validate_default=True
    )
    calibration: Texts | None = None
    seeds: Annotated[tuple[Seed, ...], Strict(False), Field(min_length=1)] = (0,)
    preset: str | None = None
    tasks: Annotated[tuple[NamedTask, ...], Strict(False), Field(min_length=1)] | None = Field(
        default=None, validate_default=True
    )
    limit: Count | None = None
    draws: Count | None = None
    estimator: Estimator | None = None
    chat_template: bool = False
    data: str | None = None
    decoding: DecodingEntry = DecodingEntry()
    outliers: Annotated[OutliersEntry | None, BeforeValidator(_switch)] = Field(
        default=True, validate_default=True
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    include: Rules = ()
    exclude: Rules = ()
    resources: Resources = Resources()
    store: Annotated[SecretStr | None, AfterValidator(_store_is_an_address)] = None
    files: Annotated[str | None, AfterValidator(_files_are_found_from_anywhere)] = None
    _folder: Path = PrivateAttr(default=Path())
    _text: str = PrivateAttr(default="")
    _path: Path = PrivateAttr(default=Path())
    _document: Document = PrivateAttr(default=Document(None, {}))

    @field_validator("schemes")
    @classmethod
    def _schemes_are_there(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        others = [m.name for m in info.data.get("methods", ()) if m.name != FULL_PRECISION_METHOD]
        if others and not value:
            fault = f"is missing: {others[0]} needs at least one, such as w4a16-g128"
            refuse([Finding((), fault)])
        return value

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, value: str | None) -> str | None:
        if value is not None:
            with refusing():
                catalog.check_name("preset", value)
        return value

    @field_validator("data")
    @classmethod
    def _data_is_a_folder(cls, value: str | None, info: ValidationInfo) -> str | None:
        return folder_exists(value, info)

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(
        cls, value: tuple[TaskEntry, ...] | None, info: ValidationInfo
    ) -> tuple[TaskEntry, ...] | None:
        if value is None:
            needed = "preset" in info.data and info.data["preset"] is None
            refuse([Finding((), "is missing: name at least one, or a preset")] if needed else [])
            return None
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
        """The file as written, but for passwords in addresses: it is kept in the store."""
        return self._text

    @property
    def store_address(self) -> str | None:
        """The store that the file names, a file's path made absolute; None if it names none.

        It may hold a password: hand it on, never print it.
        """
        return None if self.store is None else beside(self.store.get_secret_value(), self._folder)

    @property
    def replaced(self) -> frozenset[str]:
        """The keys of which `--set` has replaced something."""
        return frozenset(str(place[0]) for place in self._document.options)

    def refuse(self, findings: Sequence[Finding]) -> None:
        """Raise SweepFileError with one line for each of `findings`, if there are any.

        Args:
            findings: What is wrong, with places from the top of the file.
        """
        if findings:
            raise SweepFileError(str(self._path), tell(findings, self._document))

    def protocol_for(self, model: ModelEntry) -> ProtocolSpec:
        """The evaluation that all trials of a model share, its tasks sorted by name.

        It depends on the model's family, on how long its sequences may be, and on which of the
        file's tasks its entry names.
        """
        return protocol_of(self, model)


def read(path: Path | str, settings: Sequence[str] = ()) -> SweepFile:
    """Read and check a sweep file.

    Args:
        path: The file.
        settings: Values that go before the file's, as `KEY=VALUE`.

    Raises:
        SweepFileError: With one line for every problem in it.
    """
    return parse(_read_text(Path(path)), Path(path), settings)


def parse(text: str, path: Path, settings: Sequence[str] = ()) -> SweepFile:
    """Check the text of a sweep file as if it stood at `path`.

    Args:
        text: The file's text.
        path: Where it stands.
        settings: Values that go before the file's, as `KEY=VALUE`.

    Raises:
        SweepFileError: With one line for every problem in it.
    """
    document = _load(text, path, settings)
    text = as_text(document) if settings else text
    folder = path.absolute().parent
    context = {"folder": folder, "set": {str(place[0]) for place in document.options}}
    try:
        file = SweepFile.model_validate({"name": path.stem} | document.data, context=context)
    except ValidationError as error:
        raise SweepFileError(str(path), explain(error, SweepFile, document)) from None
    file._folder, file._text = folder, without_passwords(text)
    file._path, file._document = path, document
    if file.store is not None and holds_password(load(file.text).data["store"]):
        advice = "write special characters of the password as %40 and the like, all on one line"
        file.refuse([Finding(("store",), advice)])
    file.refuse([*misfits_of(file), *findings_of(file)])
    return file


def _load(text: str, path: Path, settings: Sequence[str]) -> Document:
    try:
        document = load(text)
        if isinstance(document.data, dict):
            return overridden(document, [read_setting(setting) for setting in settings])
    except YamlProblems as error:
        raise SweepFileError(str(path), error.problems) from error
    except InputError as error:
        raise SweepFileError(str(path), [str(error)]) from error
    what = "the file is empty" if document.data is None else "the file is not a mapping"
    hint = "`dllm-sweep init` writes one to start from"
    raise SweepFileError(str(path), [f"{what}: {hint}"])


def stored_files(text: str) -> str | None:
    """The folder or URL for files that a sweep file's text names; None if it names none."""
    data = load(text).data
    return data.get("files") if isinstance(data, dict) else None


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
