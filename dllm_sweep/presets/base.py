"""What a preset says of a task, for a family of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dllm_sweep.spec import CalibrationSpec, DecodingSpec


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """How a study ran one task; None is left to the sweep file's own defaults.

    Attributes:
        shots: Examples in the prompt.
        draws: Monte-Carlo draws of a likelihood task.
        estimator: Monte-Carlo likelihood, `llada` or `dream`.
        decoding: How text is generated.
        metric: The metric that stands for the task.
    """

    shots: int | None = None
    draws: int | None = None
    estimator: str | None = None
    decoding: DecodingSpec | None = None
    metric: str | None = None


class Preset(Protocol):
    """A study's evaluation; the module's `PLUGIN`."""

    tasks: tuple[str, ...]
    """The study's tasks by their lm-eval names: what a sweep file that names none gets."""
    dtype: str
    """Floating-point type of the computation."""

    def settings(self, task: str, family: str) -> TaskSettings:
        """Say how the study ran `task` with models of `family` (`llada`, `dream`)."""

    def calibration(self, method: str) -> CalibrationSpec | None:
        """Say what the study calibrated `method` on; None if it needs no text."""
