"""Entries of a sweep file that choose text: for calibration, and for the outlier statistics."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict, ValidationInfo, field_validator

from dllm_sweep import catalog
from dllm_sweep.spec import CalibrationSpec, OutlierSpec
from dllm_sweep.sweep_entries import Count, Entry, Seed, folder_of
from dllm_sweep.sweep_problems import refusing


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
