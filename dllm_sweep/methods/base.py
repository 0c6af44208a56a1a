"""What a post-training quantization method is. One method is one file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

ProgressCallback = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


def no_progress(done: int, total: int) -> None:
    """Report nothing: the default of `progress`."""


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What was really quantized, module by module."""

    modules: tuple[ModuleRow, ...]
    warnings: tuple[str, ...] = field(default=())

    @property
    def average_bits(self) -> float:
        """Mean bits of a weight over the quantized linears, scales and zero points included."""
        if not self.modules:
            return float(FULL_PRECISION_BITS)
        return sum(row.bits for row in self.modules) / sum(row.weights for row in self.modules)


class Method(Protocol):
    """A frozen dataclass whose fields are the method's parameters with their defaults.

    The class is the module's `PLUGIN`. Planning builds an instance from the sweep file, so a
    wrong parameter is refused before anything runs.
    """

    version: ClassVar[int]
    """Raised by hand whenever results change: it is part of every trial's key."""
    needs_calibration: ClassVar[bool]
    """Whether `quantize` reads its `calibration`."""
    symmetric: ClassVar[bool]
    """The weight grid where the scheme does not say."""

    def refusal(self, scheme: QuantScheme) -> str | None:
        """Say why this method cannot do `scheme`, or None if it can."""

    def quantize(
        self,
        model: DiffusionModel,
        scheme: QuantScheme,
        calibration: Sequence[CalibrationBatch],
        *,
        seed: int = 0,
        progress: ProgressCallback = no_progress,
    ) -> QuantizationReport:
        """Quantize `model` in place.

        Raises:
            QuantizationError: If a module pattern matches nothing or a size does not fit.
        """
