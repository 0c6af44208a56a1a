"""The sweep that `scheduling.py` orders: what the study would run, with plausible costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dllm_sweep import costs
from dllm_sweep.records import PlannedTrial, PlannedUnit
from dllm_sweep.spec import (
    FULL_PRECISION,
    CalibrationSpec,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)

MINUTE_S = 60.0
LOAD_S = 90.0
EVALUATE_MIN = (120, 80, 60, 45, 35, 25, 15, 12, 8, 5)
MODELS = ("llada-8b", "dream-7b", "llada-1.5")
BITS = (2, 3, 4, 8)


@dataclass(frozen=True)
class Method:
    """Minutes of calibration and of quantizing, and how much slower its model evaluates."""

    calibrate_min: float
    quantize_min: float
    slower: float


METHODS = {
    "rtn": Method(0, 1, 1.0),
    "smoothquant": Method(4, 2, 1.1),
    "awq": Method(4, 8, 1.2),
    "gptq": Method(12, 20, 1.3),
    "duquant": Method(4, 12, 1.6),
    "quarot": Method(12, 16, 1.9),
}
PROTOCOL = ProtocolSpec(
    tasks=tuple(TaskSpec(name=f"task{number}") for number in range(len(EVALUATE_MIN))),
    outliers=None,
)


def study(*, as_written: bool, scale: float = 1.0) -> list[PlannedTrial]:
    """The study's sweep in the order of its grid, tasks cut into shards.

    Args:
        as_written: Keep trials that differ only in a calibration set that they never read.
        scale: Of all evaluation times; 0.1 is a screening sweep.
    """
    return list(_grid(as_written, scale))


def _grid(as_written: bool, scale: float) -> Iterator[PlannedTrial]:
    for model in MODELS:
        yield _trial(model, "fp", FULL_PRECISION, None, scale)
        for method, bits in itertools.product(METHODS, BITS):
            reads = METHODS[method].calibrate_min > 0
            texts = ("web", "code") if reads or as_written else (None,)
            for text in texts:
                yield _trial(model, method, QuantScheme(w_bits=bits), text, scale)


def _trial(
    model: str, method: str, scheme: QuantScheme, text: str | None, scale: float
) -> PlannedTrial:
    spec = TrialSpec(
        model=ModelRef(name=model),
        method=method,
        scheme=scheme,
        protocol=PROTOCOL,
        calibration=None if text is None else CalibrationSpec(source=text),
    )
    kind = METHODS.get(method, Method(0, 0, 1.0))
    first_s = (kind.calibrate_min + kind.quantize_min) * MINUTE_S
    quantize = PlannedUnit(unit=Unit(kind="quantize"), estimated_s=first_s)
    units = [] if spec.is_baseline else [quantize]
    for task, minutes in zip(PROTOCOL.tasks, EVALUATE_MIN, strict=True):
        units += _shards(task.name, minutes * kind.slower * scale * MINUTE_S)
    return PlannedTrial(
        spec=spec,
        label=f"{model} {method} {scheme} {text or ''}".strip(),
        units=tuple(units),
        estimated_s=LOAD_S + sum(unit.estimated_s for unit in units),
        priority=100 if method == "fp" else 0,
    )


def _shards(task: str, whole_s: float) -> list[PlannedUnit]:
    shards = math.ceil(whole_s / costs.SHARD_S)
    parts = (Unit(kind="evaluate", task=task, shard=n, shards=shards) for n in range(shards))
    return [PlannedUnit(unit=part, estimated_s=whole_s / shards) for part in parts]
