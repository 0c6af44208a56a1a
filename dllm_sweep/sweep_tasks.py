"""Entries of a sweep file that say how models are evaluated: tasks, and how text is generated."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dllm_sweep import catalog
from dllm_sweep.spec import DecodingSpec
from dllm_sweep.sweep_entries import Count, Entry, folder_of
from dllm_sweep.sweep_problems import Finding, refuse, refusing

Estimator = Literal["llada", "dream"]
Share = Annotated[float, Field(gt=0, le=1)]

_MAY_BE_NONE = frozenset({"top_p", "top_k", "threshold", "factor"})
"""Options for which `null` means something: it switches off what a preset switches on."""


class DecodingEntry(Entry):
    """How text is generated; what is not written comes from the preset or the model's family."""

    gen_length: Count | None = None
    steps: Count | None = None
    block_length: Count | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    algorithm: str | None = None
    sampler: Literal["blockwise", "timeline"] | None = None
    top_p: Share | None = None
    top_k: Count | None = None
    algorithm_temperature: Annotated[float, Field(ge=0)] | None = None
    cfg_scale: Annotated[float, Field(ge=0)] | None = None
    forbid_end: bool | None = None
    defer_end: bool | None = None
    threshold: Share | None = None
    factor: Annotated[float, Field(gt=0)] | None = None
    cache: Literal["none", "prefix", "dual"] | None = None

    @field_validator("algorithm")
    @classmethod
    def _exists(cls, value: str | None) -> str | None:
        if value is not None:
            with refusing():
                catalog.check_name("decoding algorithm", value)
        return value

    def over(self, base: DecodingSpec) -> DecodingSpec:
        """Give `base` with what is written here; a sampler and its algorithm go together."""
        written = {
            name: _plain(name, getattr(self, name))
            for name in self.model_fields_set
            if getattr(self, name) is not None or name in _MAY_BE_NONE
        }
        if "algorithm" in written:
            written.setdefault("sampler", catalog.sampler_of(written["algorithm"]))
        if written.get("sampler", base.sampler) != base.sampler:
            base = _of_another_sampler(base, written["sampler"])
        return replace(base, **written)


def _of_another_sampler(base: DecodingSpec, sampler: str) -> DecodingSpec:
    """What stays of `base` where another sampler takes over: the window, its usual algorithm."""
    return DecodingSpec(
        gen_length=base.gen_length,
        steps=base.steps,
        block_length=base.block_length,
        temperature=base.temperature,
        sampler=sampler,
        algorithm=catalog.USUAL_ALGORITHM[sampler],
    )


def _plain(name: str, value: Any) -> Any:
    """A number as the specs have it: `1` written for a temperature is 1.0."""
    counts = ("gen_length", "steps", "block_length", "top_k")
    whole = isinstance(value, bool) or name in counts or not isinstance(value, int)
    return value if whole else float(value)


class TaskEntry(Entry):
    """One task, with settings of its own where they differ from the file's."""

    name: str
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    metric: str | None = None
    limit: Count | None = None
    draws: Count | None = None
    estimator: Estimator | None = None
    decoding: DecodingEntry = DecodingEntry()
    data: str | None = None

    @field_validator("name")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        with refusing():
            catalog.check_task(task_location(value, folder_of(info)))
        return value

    @field_validator("data")
    @classmethod
    def _is_a_folder(cls, value: str | None, info: ValidationInfo) -> str | None:
        return folder_exists(value, info)


def task_location(name: str, folder: Path) -> str:
    """The name by which a task loads; a user's YAML file is looked for beside the sweep file."""
    return str((folder / name).resolve()) if name.endswith(".yaml") else name


def folder_exists(value: str | None, info: ValidationInfo) -> str | None:
    """Refuse a folder of data that is neither beside the sweep file nor where the user stands."""
    if value is not None and not Path(data_folder(value, folder_of(info))).is_dir():
        refuse([Finding((), f"there is no folder {value!r} beside the sweep file or here")])
    return value


def data_folder(written: str, folder: Path) -> str:
    """The whole path of a folder of data, looked for beside the sweep file, then from here."""
    beside = (folder / Path(written).expanduser()).resolve()
    return str(beside if beside.is_dir() else Path(written).expanduser().resolve())
