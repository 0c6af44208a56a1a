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
from dllm_sweep.spec import ModelRef
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


def folder_of(info: ValidationInfo) -> Path:
    """Where the sweep file lies."""
    return Path(info.context["folder"]) if info.context else Path()


class ModelEntry(Entry):
    """A checkpoint (an embedded name, a folder, or a hub id) and what its trials get."""

    name: str
    revision: str | None = None
    family: str | None = None
    tasks: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)] | None = None
    resources: Resources = Resources()

    @field_validator("family")
    @classmethod
    def _family_exists(cls, value: str | None) -> str | None:
        if value is not None:
            with refusing():
                catalog.check_name("model family", value)
        return value

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> ModelEntry:
        with refusing("name"):
            catalog.facts_of(self.ref(folder_of(info)))
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
        ref = catalog.resolve_model(str(beside) if found else self._as_written)
        return ref if self.family is None else replace(ref, family=self.family)


class MethodEntry(Entry):
    """A quantization method; every key but `name` is one of its parameters."""

    model_config = ConfigDict(extra="allow")

    name: str

    @model_validator(mode="after")
    def _exists(self, info: ValidationInfo) -> MethodEntry:
        location = self.location(folder_of(info))
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
