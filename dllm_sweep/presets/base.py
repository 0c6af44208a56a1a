"""What a preset says of a task and of a method, for a family of models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from dllm_sweep.spec import FULL_PRECISION_BITS, CalibrationSpec, DecodingSpec, QuantScheme


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


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """How a study ran one method; what it left open is the method's own default.

    Attributes:
        parameters: The parameters that it said, as pairs (name, value) in a sweep file's form.
        symmetric: The weight grid where a scheme does not say; None is left open.
        operands: What attention rounds to the bits of the activations, where a scheme rounds
            these and says nothing of attention: keys and values, or queries, too; None is nothing.
    """

    parameters: tuple[tuple[str, Any], ...] = ()
    symmetric: bool | None = None
    operands: Literal["kv", "qkv"] | None = None

    def scheme(self, written: str) -> QuantScheme:
        """Read a scheme's name, with what the study adds where the name says nothing.

        Args:
            written: Such as `w4a4`; `w4a4-kv16` says that attention rounds nothing.

        Raises:
            InputError: If it is no scheme.
        """
        scheme = QuantScheme.parse(written)
        if scheme.symmetric is None:
            scheme = replace(scheme, symmetric=self.symmetric)
        if scheme.a_bits == FULL_PRECISION_BITS or speaks_of_operands(written):
            return scheme
        if self.operands == "kv":
            return replace(scheme, kv_bits=scheme.a_bits)
        return replace(scheme, qkv=self.operands == "qkv")


LEFT_OPEN = MethodSettings()
"""Nothing is said of a method."""


def speaks_of_operands(written: str) -> bool:
    """Whether a scheme's name says what attention rounds, `-kv16` for nothing included."""
    return "kv" in written.lower()


class Preset(Protocol):
    """A study's evaluation and its methods; the module's `PLUGIN`."""

    tasks: tuple[str, ...]
    """The study's tasks by their lm-eval names: what a sweep file that names none gets."""
    dtype: str
    """Floating-point type of the computation."""

    def settings(self, task: str, family: str) -> TaskSettings:
        """Say how the study ran `task` with models of `family` (`llada`, `dream`)."""

    def method(self, method: str, family: str) -> MethodSettings:
        """Say how the study ran `method` with models of `family`; neutral if it did not."""

    def calibration(self, method: str, family: str) -> CalibrationSpec | None:
        """Say what the study calibrated `method` on; None if it needs no text."""
