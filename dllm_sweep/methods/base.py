"""What a post-training quantization method is. One method is one file beside this one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.input_statistics import InputStatistics, input_statistics
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

ProgressCallback = Callable[[int, int], None]
"""Called with (blocks done, blocks in all)."""


Statistics = Callable[
    [DiffusionModel, Sequence[CalibrationBatch], torch.device | None], Mapping[str, InputStatistics]
]
"""Measures what the linears of a full-precision model read, by full name, on a device that blocks
visit; None is where they are."""


def no_progress(done: int, total: int) -> None:
    """Report nothing: the default of `progress`."""


@dataclass(frozen=True, kw_only=True)
class BlockRecord:
    """What was done to the linears of one block.

    Attributes:
        modules: A row for each quantized linear.
        warnings: What the user should know.
    """

    modules: tuple[ModuleRow, ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[BlockRecord]) -> BlockRecord:
        """Put what was done to some linears behind each other."""
        parts = tuple(parts)
        return cls(
            modules=tuple(row for part in parts for row in part.modules),
            warnings=tuple(warning for part in parts for warning in part.warnings),
        )


class FinishedBlocks(Protocol):
    """Blocks that an earlier run of the same quantization has finished, and those of this one.

    A block is restored to the last bit, so that what follows from it is the same, too.
    """

    def restore(self, model: DiffusionModel, index: int) -> BlockRecord | None:
        """Put block `index` in place as it was finished; None if it is to be quantized now."""

    def keep(self, model: DiffusionModel, index: int, record: BlockRecord) -> None:
        """Take note of block `index`, which has just been quantized and will not change again."""


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What surrounds one quantization; nothing of it changes the result.

    Attributes:
        progress: Called after every block.
        device: Where blocks are computed; None is where their weights are. Weights that are on the
            CPU can stay there: each block visits the device while it is worked on.
        statistics: Measures inputs, or finds them measured.
        finished: Where a method that goes block by block finds blocks that were finished before it
            was interrupted; None if every block is quantized now.
    """

    progress: ProgressCallback = no_progress
    device: torch.device | None = None
    statistics: Statistics = input_statistics
    finished: FinishedBlocks | None = None

    def finish(
        self, model: DiffusionModel, index: int, quantize: Callable[[], BlockRecord]
    ) -> BlockRecord:
        """Restore block `index` if it was finished before; otherwise call `quantize` and keep it.

        What a method does between blocks must not depend on which of the two happened.
        """
        if self.finished is None:
            return quantize()
        record = self.finished.restore(model, index)
        if record is None:
            record = quantize()
            self.finished.keep(model, index, record)
        return record


ALONE = Workspace()
"""Nobody watches, and nothing is kept."""


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What was really quantized, module by module."""

    modules: tuple[ModuleRow, ...]
    warnings: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, records: Iterable[BlockRecord], names: Sequence[str]) -> QuantizationReport:
        """Put the records of all blocks together.

        Args:
            records: Of every block.
            names: All quantized linears, in the order in which they are reported.
        """
        whole = BlockRecord.joined(records)
        rows = {row.module: row for row in whole.modules}
        warnings = tuple(dict.fromkeys(whole.warnings))
        return cls(modules=tuple(rows[name] for name in names), warnings=warnings)

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
        workspace: Workspace = ALONE,
    ) -> QuantizationReport:
        """Quantize `model` in place.

        Raises:
            QuantizationError: If a module pattern matches nothing or a size does not fit.
        """
