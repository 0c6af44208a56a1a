"""What a trial will cost: from a small table (parameters x tokens x steps), then from experience.

The table's estimates order work and tell a person minutes from hours before anything has run.
What units really took is in the store; `Experience` learns from it how far the table is off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from dllm_sweep.records import PlannedUnit, UnitTime
from dllm_sweep.spec import ModelRef, TaskSpec, TrialSpec, Unit
from dllm_sweep.workload import items_of, unit_tokens

FLOP_PER_PARAMETER = 2
"""A forward pass multiplies and adds each weight once for each token."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast one actor is.

    Attributes:
        flop_per_s: Sustained in forward passes of batched evaluation.
        start_s: Seconds for loading a small model.
        bytes_per_s: Reading weights from disk.
        slowness: How many times longer a forward pass takes in some types.
    """

    flop_per_s: float
    start_s: float
    bytes_per_s: float
    slowness: Mapping[str, float] = field(default_factory=dict)


CPU = Machine(flop_per_s=1e11, start_s=1.0, bytes_per_s=1e9)
"""One of two busy cores with a model of 5 million weights, measured in examples/quickstart.yaml:
10 s for 30 items of tiny_code, 7 s for 30 of tiny_math, in 16 steps."""
GPU = Machine(flop_per_s=4e14, start_s=5.0, bytes_per_s=2e9, slowness={"float32": 8.0})
"""An H100 or H200 in bfloat16 at four tenths of its peak, as batched forward passes of models of 8
billion weights reach. In float32 its peak is a fifteenth, of which more can be used."""

LARGE = 1e9
"""Weights from which on a model is taken to run on a GPU."""
UNKNOWN_PARAMETERS = 8e9
"""LLaDA-8B and Dream-7B are what people sweep."""

SHARD_S = 20 * 60.0
"""A task that takes longer is cut into shards: what a lost machine costs, and the grain in which
workers share a long trial."""
_LOADS_PER_SHARD = 10
"""A shard takes at least so many times as long as loading the weights for it."""
_NEWEST_SHARE = 0.2
"""Weight of the newest unit in a learnt factor, once there are several."""
_USUAL_SPREAD = 0.25
"""Standard deviation of log(real / estimated seconds) before enough was measured."""
_ENOUGH = 20
_QUANTIZE = "quantize"
_FOUND_SHARE = 0.05


def machine_for(gpus: float | None, parameters: float = 0.0) -> Machine:
    """The machine that a trial with so many GPUs runs on; None asks this one.

    Nobody runs a model of billions of weights on CPUs: it is meant for GPUs that are elsewhere.
    """
    if gpus is None:
        has_gpu = parameters >= LARGE or Path("/dev/nvidiactl").exists()
        return GPU if has_gpu else CPU
    return GPU if gpus > 0 else CPU


def load_s(parameters: float, machine: Machine) -> float:
    """Estimate the seconds until a worker has a model's weights in memory."""
    return machine.start_s + 2 * parameters / machine.bytes_per_s


def estimate_trial_s(trial: TrialSpec, parameters: float, machine: Machine) -> float:
    """Estimate the wall time of a whole trial on one actor, in seconds."""
    units = sum(estimate_unit_s(trial, unit, parameters, machine) for unit in trial.units())
    return load_s(parameters, machine) + units


def plan_units(
    trial: TrialSpec, parameters: float, machine: Machine, longest: int | None = None
) -> tuple[PlannedUnit, ...]:
    """Cut long tasks into shards and estimate every unit.

    The cut depends on the table alone, never on what was learnt: it is stored with the trial.

    Args:
        trial: The trial.
        parameters: Weights of its model.
        machine: What it runs on.
        longest: Tokens that its model reads at most; None is any number.
    """
    grain_s = max(SHARD_S, _LOADS_PER_SHARD * load_s(parameters, machine))
    costs_s = {
        unit: estimate_unit_s(trial, unit, parameters, machine, longest) for unit in trial.units()
    }
    return tuple(
        part for unit, cost_s in costs_s.items() for part in _cut(trial, unit, cost_s, grain_s)
    )


def _cut(trial: TrialSpec, unit: Unit, whole_s: float, grain_s: float) -> Iterator[PlannedUnit]:
    shards = 1
    if unit.kind == "evaluate" and whole_s > grain_s:
        task = trial.protocol.task(unit.task)
        shards = min(math.ceil(whole_s / grain_s), items_of(task)) if _may_be_cut(task) else 1
    for shard in range(shards):
        part = Unit(kind=unit.kind, task=unit.task, shard=shard, shards=shards)
        yield PlannedUnit(unit=part, estimated_s=round(whole_s / shards, 3))


@lru_cache(maxsize=1024)
def _may_be_cut(task: TaskSpec) -> bool:
    from dllm_sweep.evaluation.tasks import may_be_cut

    return may_be_cut(task.name)


def estimate_unit_s(
    trial: TrialSpec,
    unit: Unit,
    parameters: float,
    machine: Machine,
    longest: int | None = None,
) -> float:
    """Estimate the wall time of one unit, in seconds; the arguments are those of `plan_units`."""
    slower = machine.slowness.get(trial.protocol.dtype, 1.0)
    flop = FLOP_PER_PARAMETER * parameters * unit_tokens(trial, unit, longest)
    return slower * flop / machine.flop_per_s


@lru_cache
def count_parameters(ref: ModelRef) -> float:
    """Count a checkpoint's weights by the table of published ones or its files' headers, or guess
    by its name."""
    from dllm_sweep.models.known import published
    from dllm_sweep.models.locate import tensor_shapes

    known = published(ref.name)
    if known is not None:
        return float(known.parameters)
    shapes = tensor_shapes(ref)
    if shapes:
        return float(sum(math.prod(shape) for shape in shapes.values()))
    billions = re.search(r"(\d+(?:\.\d+)?)[bB]\b", ref.name)
    return float(billions[1]) * 1e9 if billions else UNKNOWN_PARAMETERS


@dataclass
class _Mean:
    """A mean that follows the newest values."""

    n: int = 0
    value: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        self.value += max(1 / self.n, _NEWEST_SHARE) * (value - self.value)


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a unit's time depends on; an empty `device` stands for any.

    Attributes:
        model: The model's name.
        method: The quantization method.
        scheme: The bit-widths.
        work: The task, or the kind of unit where there is none.
        device: `cpu` or the GPU's name.
    """

    model: str
    method: str
    scheme: str
    work: str
    device: str = ""


class Experience:
    """How much longer units take than the table says, learnt from those that are done.

    Args:
        times: What is known, oldest first.
    """

    def __init__(self, times: Iterable[UnitTime] = ()) -> None:
        self._means: dict[tuple[str, ...], _Mean] = {}
        self._surprise = _Mean()
        self.learnt = 0
        for time in times:
            work = time.task or time.kind
            self.learn(
                Work(
                    model=time.model,
                    method=time.method,
                    scheme=time.scheme,
                    work=work,
                    device=time.device,
                ),
                time.estimated_s,
                time.wall_s,
            )

    def learn(self, work: Work, estimated_s: float, wall_s: float) -> None:
        """Take in what one unit took."""
        if estimated_s <= 0 or wall_s <= 0:
            return
        if work.work == _QUANTIZE and wall_s < _FOUND_SHARE * estimated_s:
            return  # the weights were there already, made by another trial
        log_ratio = math.log(wall_s / estimated_s)
        if self._known(work) is not None:
            self._surprise.add((log_ratio - math.log(self.factor(work))) ** 2)
        for level in _levels(work):
            self._means.setdefault(level, _Mean()).add(log_ratio)
        self.learnt += 1

    def factor(self, work: Work) -> float:
        """Real seconds for each second of the table, by the units most like this one."""
        known = self._known(work)
        return 1.0 if known is None else math.exp(known.value)

    @property
    def spread(self) -> float:
        """Standard deviation of log(real / estimated seconds) that is left after learning."""
        return math.sqrt(self._surprise.value) if self._surprise.n >= _ENOUGH else _USUAL_SPREAD

    def _known(self, work: Work) -> _Mean | None:
        found = (self._means.get(level) for level in _levels(work))
        return next((mean for mean in found if mean is not None), None)


def _levels(work: Work) -> Iterator[tuple[str, ...]]:
    """Groups of units like this one, the most alike first; each with the device and for any."""
    groups = [
        (work.work, work.model, work.method, work.scheme),
        (work.work, work.model, work.method),
        (work.work, work.model),
        (work.work,),
    ]
    if work.work != _QUANTIZE:
        # How far the table is off for forward passes says nothing of a solver, and the other way.
        groups.append(())
    for group in groups:
        grain = str(len(group))
        if work.device:
            yield grain, work.device, *group
        yield grain, "", *group
