"""What controller and workers tell each other; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dllm_sweep.records import Demand, EndReason, Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What is the same for all units of one worker.

    Attributes:
        files: Folder for logs, quantized weights and answers.
        device: `cuda` or `cpu`.
        threads: Threads of one CPU operation.
        batch_size: Sequences in one forward pass, before a trial's `batch_scale`.
        bench: Where the work is done, `module:Class`: the class takes these options and has
            `run(claim, unit) -> UnitResult` and `discard_weights(claim)`.
    """

    files: Path
    device: str
    threads: int
    batch_size: int
    bench: str = "dllm_sweep.workers.trial:Workbench"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one unit ended; its results are in the store already.

    Attributes:
        unit: The unit.
        wall_s: Seconds it took.
        state: The trial's state after the commit; None if somebody else owns the trial now.
        failure: Why it failed; None if it was committed.
        fresh_process: Whether the worker should be replaced by a new process.
    """

    unit: Unit
    wall_s: float = 0.0
    state: TrialState | None = None
    failure: Failure | None = None
    fresh_process: bool = False


@dataclass(frozen=True, kw_only=True)
class Death:
    """A worker whose process ended while it ran a unit.

    Attributes:
        reason: HOST_OOM if the machine ran out of memory, ERROR if the trial's code ended the
            process, else LOST.
        message: What is known about it, on one line.
        machine_lost: Whether its whole machine is gone: that is not the trial's doing.
    """

    reason: EndReason
    message: str
    machine_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Finished:
    """One unit's end on one worker."""

    worker: int
    result: Outcome | Death


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker whose process is up.

    Attributes:
        id: Its number; a process that replaces it gets another one, numbers never come back.
        demand: The size it was asked for with.
        host: Where it runs.
    """

    id: int
    demand: Demand
    host: HostInfo
