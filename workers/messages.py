"""What controller and workers tell each other; nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dllm_sweep.records import (
    Claim,
    Demand,
    EndReason,
    Failure,
    HostInfo,
    TrialState,
    UnitResult,
)
from dllm_sweep.spec import Unit


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """What is the same for all units of one worker.

    Attributes:
        files: Folder for logs, quantized weights and answers.
        device: `cuda` or `cpu`.
        threads: Threads of one CPU operation.
        batch_size: Sequences in one forward pass, before a trial's `batch_scale`.
        bench: Where the work is done, `module:Class`: the class takes these options and is a
            `Bench`.
        gpus: GPUs that the worker may use, or its share of one.
        beat_s: Seconds between two signs of life to the store.
        batch_sizes: Models that have a batch size of their own, with it.
        remote: URL of the folder that committed files are put into; `files` is then this
            machine's copy of it. Empty if `files` is where they stay.
        peers: Name under which machines hand each other files (`workers.transfer`); empty if they
            share a folder, or there is one machine.
        kept: Quantization keys whose weights outlive their trial: other trials need them.
    """

    files: Path
    device: str
    threads: int
    batch_size: int
    bench: str = "dllm_sweep.workers.trial:Workbench"
    gpus: float = 0.0
    beat_s: float = 5.0
    batch_sizes: tuple[tuple[str, int], ...] = ()
    remote: str = ""
    peers: str = ""
    kept: frozenset[str] = frozenset()

    def batch_size_for(self, model: str) -> int:
        """Sequences in one forward pass of a model."""
        return dict(self.batch_sizes).get(model, self.batch_size)


class Bench(Protocol):
    """What does the work in a worker; it knows neither Ray nor the store.

    It may have two attributes more: `device_name` (the GPU's name) and `worn_out` (whether the
    process should be replaced although the unit succeeded).
    """

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Do one unit of a trial."""

    def discard_weights(self, claim: Claim) -> None:
        """Let go of what only the resuming of a trial needs: it has succeeded."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one unit ended; its results are in the store already.

    Attributes:
        unit: The unit.
        wall_s: Seconds it took.
        state: The trial's state after the commit; None if somebody else owns the trial now.
        failure: Why it failed; None if it was committed.
        fresh_process: Whether the worker should be replaced by a new process.
        stop: Why no worker can go on, such as a full disk; empty otherwise. The attempt was ended
            as ABORTED then.
    """

    unit: Unit
    wall_s: float = 0.0
    state: TrialState | None = None
    failure: Failure | None = None
    fresh_process: bool = False
    stop: str = ""


@dataclass(frozen=True, kw_only=True)
class Death:
    """A worker whose process ended while it ran a unit.

    Attributes:
        reason: HOST_OOM if the machine ran out of memory, PREEMPTED if it was taken away, ERROR if
            the trial's code ended the process, else LOST, also where the worker left because
            somebody else owns the trial: whether that is so, the store knows.
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
