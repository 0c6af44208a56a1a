"""The entries of a sweep file: each knows how it is written and what it stands for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Strict,
    ValidationInfo,
    field_validator,
    model_validator,
)

from dllm_sweep import catalog
from dllm_sweep.errors import InputError
from dllm_sweep.sizes import size_in_bytes
from dllm_sweep.spec import CalibrationSpec, DecodingSpec, ModelRef, OutlierSpec, TaskSpec
from dllm_sweep.sweep_problems import Finding, refuse, refusing

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Entry(BaseModel):
    """A mapping of the sweep file: nothing is converted, nothing unknown is let through."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Resources(Entry):
    """What one trial gets; what is not written is decided when the sweep runs."""

    gpus: Annotated[float, Field(ge=0)] | None = None
    cpus: Annotated[float, Field(gt=0)] | None = None
    memory: str | Annotated[int, Field(gt=0)] | None = None
    labels: dict[str, str] = {}
    batch_size: Count | None = None

    @field_validator("memory")
    @classmethod
    def _is_a_size(cls, value: str | int | None) -> str | int | None:
        with refusing():
            size_in_bytes(value)
        return value

    @property
    def memory_bytes(self) -> int | None:
        """Main memory in bytes; None if it is not written."""
        return size_in_bytes(self.memory)

    def before(self, other: Resources) -> Resources:
        """These, and what `other` says where they say nothing."""
        mine, theirs = self.model_dump(), other.model_dump()
        both = theirs | {key: value for key, value in mine.items() if value is not None}
        return Resources(**both | {"labels": theirs["labels"] | mine["labels"]})


def _folder(info: ValidationInfo) -> Path:
    """Where the sweep file lies."""
    return Path(info.context["folder"]) if info.context else Path()


class ModelEntry(Entry):
    """A checkpoint (an embedded name, a folder, or a hub id) and what its trials get."""

    name: str
    revision: str | None = None
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> ModelEntry:
        with refusing("name"):
            self.ref(_folder(info))
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What rules may call it."""
        return (self.name, self.name.partition("@")[0], self._as_written)

    @property
    def _as_written(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    def ref(self, folder: Path) -> ModelRef:
        """The checkpoint with its digest; a folder is looked for beside the sweep file.

        Raises:
            InputError: If there is no such model.
        """
        beside = (folder / self.name).resolve()
        found = (beside / "config.json").is_file()
        return catalog.resolve_model(str(beside) if found else self._as_written)


class MethodEntry(Entry):
    """A quantization method; every key but `name` is one of its parameters."""

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> MethodEntry:
        location = self.location(_folder(info))
        with refusing("name"):
            catalog.build_method(location, {})
        refuse(_wrong_parameters(location, self.parameters))
        with refusing():
            catalog.build_method(location, self.parameters)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What rules may call it."""
        return (self.name,)

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters as written."""
        return dict(self.model_extra or {})

    def location(self, folder: Path) -> str:
        """The name by which it loads; a user's file is looked for beside the sweep file."""
        path, colon, attribute = self.name.rpartition(":")
        return f"{(folder / path).resolve()}:{attribute}" if colon else self.name


def _wrong_parameters(method: str, parameters: dict[str, Any]) -> list[Finding]:
    wrong = []
    for key, value in parameters.items():
        try:
            catalog.build_method(method, {key: value})
        except InputError as error:
            wrong.append(Finding((key,), str(error)))
    return wrong


class TextEntry(Entry):
    """A choice of text: a set of the package, a local file or folder, or a hub data set."""

    samples: Count = CalibrationSpec.samples
    length: Count = CalibrationSpec.length
    seed: Seed = CalibrationSpec.seed
    split: str = CalibrationSpec.split
    subset: str | None = None
    text_field: str = CalibrationSpec.text_field
    # The last field: its validator sees the others, and reports beside what is wrong in them.
    source: str = Field(default=CalibrationSpec.source, validate_default=True)

    @field_validator("source")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        where = {
            key: info.data[key] for key in ("split", "subset", "text_field") & info.data.keys()
        }
        with refusing():
            catalog.resolve_calibration(
                CalibrationSpec(source=_text_location(value, _folder(info)), **where)
            )
        return value

    def text(self, folder: Path) -> CalibrationSpec:
        """The text with its digest; a file is looked for beside the sweep file.

        Raises:
            InputError: If there is no such text.
        """
        source = _text_location(self.source, folder)
        return catalog.resolve_calibration(replace(self._as_written(), source=source))

    def _as_written(self) -> CalibrationSpec:
        return CalibrationSpec(
            source=self.source,
            samples=self.samples,
            length=self.length,
            seed=self.seed,
            split=self.split,
            subset=self.subset,
            text_field=self.text_field,
        )


def _text_location(source: str, folder: Path) -> str:
    beside = (folder / source).resolve()
    known = source in catalog.names("calibration") or not beside.exists()
    return source if known else str(beside)


class CalibrationEntry(TextEntry):
    """One calibration set: text, and how it is masked."""

    masking: str = CalibrationSpec.masking

    @field_validator("masking")
    @classmethod
    def _masking_exists(cls, value: str) -> str:
        with refusing():
            catalog.check_name("masking", value)
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """What rules may call it."""
        return (self.source, str(self._as_written()))

    def _as_written(self) -> CalibrationSpec:
        return replace(super()._as_written(), masking=self.masking)


class OutliersEntry(TextEntry):
    """What the outlier statistics are taken over."""

    samples: Count = OutlierSpec().text.samples
    mask_ratios: Annotated[
        tuple[Annotated[float, Field(ge=0, le=1)], ...], Strict(False), Field(min_length=1)
    ] = OutlierSpec.mask_ratios
    top: Count = OutlierSpec.top

    def spec(self, folder: Path) -> OutlierSpec:
        """What the statistics are taken over."""
        ratios = tuple(sorted({float(ratio) for ratio in self.mask_ratios}))
        return OutlierSpec(text=self.text(folder), mask_ratios=ratios, top=self.top)


class TaskEntry(Entry):
    """One task, with settings of its own where they differ from the file's."""

    name: str
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    limit: Count | None = None
    draws: Count | None = None

    @field_validator("name")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        with refusing():
            catalog.check_task(_task_location(value, _folder(info)))
        return value

    def spec(self, limit: int | None, draws: int, folder: Path) -> TaskSpec:
        """The task with the file's `limit` and `draws` where it has none of its own."""
        written = TaskSpec(
            name=_task_location(self.name, folder),
            shots=self.shots,
            limit=self.limit or limit,
            draws=self.draws or draws,
        )
        return catalog.resolve_task(written)


def _task_location(name: str, folder: Path) -> str:
    """The name by which a task loads; a user's YAML file is looked for beside the sweep file."""
    return str((folder / name).resolve()) if name.endswith(".yaml") else name


class DecodingEntry(Entry):
    """How text is generated."""

    block_length: Count = DecodingSpec.block_length
    # Each validator sees the fields above it, and reports beside what is wrong in the others.
    gen_length: Count = Field(default=DecodingSpec.gen_length, validate_default=True)
    steps: Count = Field(default=DecodingSpec.steps, validate_default=True)
    temperature: Annotated[float, Field(ge=0)] = DecodingSpec.temperature
    algorithm: str = DecodingSpec.algorithm

    @field_validator("algorithm")
    @classmethod
    def _exists(cls, value: str) -> str:
        with refusing():
            catalog.check_name("decoding algorithm", value)
        return value

    @field_validator("gen_length")
    @classmethod
    def _blocks_fit(cls, value: int, info: ValidationInfo) -> int:
        block = info.data.get("block_length", value)
        if value % block:
            refuse([Finding((), f"{value} is not a multiple of block_length {block}")])
        return value

    @field_validator("steps")
    @classmethod
    def _steps_fit(cls, value: int, info: ValidationInfo) -> int:
        if {"gen_length", "block_length"} <= info.data.keys():
            blocks = info.data["gen_length"] // info.data["block_length"]
            fault = (
                f"{value} cannot be shared equally by the {blocks} blocks of"
                f" gen_length / block_length: write a multiple of {blocks}"
            )
            refuse([Finding((), fault)] if value % blocks else [])
        return value

    def spec(self) -> DecodingSpec:
        """The frozen value."""
        return DecodingSpec(**self.model_dump() | {"temperature": float(self.temperature)})
