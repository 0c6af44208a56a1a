"""Entries of a sweep file that choose text: for calibration, and for the outlier statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, ValidationInfo, field_validator, model_validator

from dllm_sweep import catalog
from dllm_sweep.spec import CalibrationSpec, OutlierSpec
from dllm_sweep.sweep_entries import Count, Entry, Seed, folder_of
from dllm_sweep.sweep_problems import Finding, refuse, refusing


class TextEntry(Entry):
    """A choice of text: a set of the package, a local file or folder, or a hub data set."""

    samples: Count = CalibrationSpec.samples
    length: Count = CalibrationSpec.length
    seed: Seed = CalibrationSpec.seed
    split: str = CalibrationSpec.split
    subset: str | None = None
    text_field: str = CalibrationSpec.text_field
    revision: str | None = None
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
                CalibrationSpec(source=_text_location(value, folder_of(info)), **where),
                info.data.get("revision"),
            )
        return value

    def text(self, folder: Path) -> CalibrationSpec:
        """The text with its digest; a file is looked for beside the sweep file.

        Raises:
            InputError: If there is no such text.
        """
        source = _text_location(self.source, folder)
        return catalog.resolve_calibration(
            replace(self._as_written(), source=source), self.revision
        )

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


_OF_TEXT = frozenset({"source", "split", "subset", "text_field", "revision"})
"""Keys that say which text is meant."""


class CalibrationEntry(TextEntry):
    """One calibration set: text, how it is masked, and which tokens count."""

    masking: str = CalibrationSpec.masking
    prompt_share: float = CalibrationSpec.prompt_share
    steps: Count | None = None
    block_length: Count | None = None
    mask_ratios: Annotated[tuple[float, ...], Strict(False)] = ()
    masked_weight: float = CalibrationSpec.masked_weight
    visible_weight: float = CalibrationSpec.visible_weight
    prompts: str = CalibrationSpec.prompts
    prompt_field: str = CalibrationSpec.prompt_field
    answer_field: str = CalibrationSpec.answer_field

    @field_validator("masking")
    @classmethod
    def _masking_exists(cls, value: str) -> str:
        with refusing():
            catalog.check_name("masking", value)
        return value

    @model_validator(mode="after")
    def _options_go_together(self, info: ValidationInfo) -> CalibrationEntry:
        refuse([Finding((name,), problem) for name, problem in self._problems(folder_of(info))])
        return self

    def _problems(self, folder: Path) -> tuple[tuple[str, str], ...]:
        written = self._as_written()
        return catalog.calibration_problems(
            replace(written, source=_text_location(self.source, folder))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What rules may call it."""
        return (self.source, str(self._as_written()))

    @property
    def names_text(self) -> bool:
        """Whether it says which text; with a preset it may be about size and masking alone."""
        return self.masking == "chat" or not self.model_fields_set.isdisjoint(_OF_TEXT)

    def over(self, base: CalibrationSpec) -> CalibrationSpec:
        """Give `base` with what is written here, its text apart."""
        spec = self._as_written()
        written = self.model_fields_set - _OF_TEXT
        return replace(base, **{name: getattr(spec, name) for name in written})

    def _as_written(self) -> CalibrationSpec:
        return replace(
            super()._as_written(),
            masking=self.masking,
            prompt_share=self.prompt_share,
            steps=self.steps,
            block_length=self.block_length,
            mask_ratios=tuple(sorted({float(ratio) for ratio in self.mask_ratios})),
            masked_weight=self.masked_weight,
            visible_weight=self.visible_weight,
            prompts=self.prompts,
            prompt_field=self.prompt_field,
            answer_field=self.answer_field,
        )


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
