"""Plain lines: what a person reads in a file or a pipe."""

from __future__ import annotations

import time
from typing import IO

from dllm_sweep.progress.base import Quiet, Subject, reason
from dllm_sweep.records import Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit


class PlainDisplay(Quiet):
    """One line for each event that matters, with the seconds since the start."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._zero = stream, time.monotonic()
        self._units = self._done = 0

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Say how much there is to do."""
        self._units, self._done = units, done
        self.note(f"{units - done} of {units} units to do, at first on {workers} workers")

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Print one line."""
        self.note(f"worker {worker} is up on {host.host} ({host.device})")

    def worker_left(self, worker: int, why: str) -> None:
        """Print one line."""
        self.note(f"worker {worker} is gone: {why}")

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Print one line."""
        self._done += 1
        self.note(f"{self._done}/{self._units} {trial.label}: {unit.key} done in {wall_s:.1f} s")

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Print one line."""
        self.note(f"{trial.label}: {state}{reason(failure)}")

    def note(self, text: str) -> None:
        """Print one line."""
        print(f"[{time.monotonic() - self._zero:7.1f}s] {text}", file=self._stream, flush=True)
