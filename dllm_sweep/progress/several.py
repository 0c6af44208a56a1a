"""Telling several displays the same."""

from __future__ import annotations

from collections.abc import Mapping

from dllm_sweep.progress.base import Display, Subject
from dllm_sweep.records import Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit


class Several:
    """Hands every event on to all of `displays`, in their order."""

    def __init__(self, *displays: Display) -> None:
        self._displays = displays

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.start(units=units, done=done, workers=workers)

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.worker_joined(worker, host)

    def worker_left(self, worker: int, why: str) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.worker_left(worker, why)

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.unit_started(worker, trial, unit)

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.unit_done(worker, trial, unit, wall_s)

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.unit_failed(worker, trial, unit, failure)

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.trial_ended(trial, state, failure)

    def standing(self, trials: Mapping[TrialState, int], left_s: float | None) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.standing(trials, left_s)

    def lease_renewed(self) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.lease_renewed()

    def store_waited(self, seconds: float, error: str) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.store_waited(seconds, error)

    def note(self, text: str) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.note(text)

    def stop(self) -> None:
        """Tell all."""
        for shown in self._displays:
            shown.stop()
