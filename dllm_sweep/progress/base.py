"""What is told about a running sweep: the events, in the order in which they happen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dllm_sweep.records import Claim, Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit


@dataclass(frozen=True)
class Subject:
    """The trial that an event is about.

    Attributes:
        key: Its key.
        label: Its name for people.
        attempt: Number of the attempt; 0 if none has begun.
    """

    key: str
    label: str
    attempt: int = 0

    @classmethod
    def of(cls, claim: Claim) -> Subject:
        """The trial of a claim."""
        return cls(claim.trial_key, claim.label, claim.attempt)


class Display(Protocol):
    """Told of everything that happens, in the order in which it happens."""

    def start(self, *, units: int, done: int, workers: int) -> None:
        """The sweep starts with `done` of its `units` committed before, on `workers` workers."""

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """A worker came up; numbers never come back."""

    def worker_left(self, worker: int, why: str) -> None:
        """A worker died or was let go."""

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """A worker begins a unit."""

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """A unit was committed after `wall_s` seconds."""

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """A unit ended without a result; None if somebody else owns its trial now."""

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """A trial succeeded, failed, was given up or went back into the queue."""

    def standing(self, trials: Mapping[TrialState, int], left_s: float | None) -> None:
        """How many trials are in which state, and about how many seconds are left on the workers
        that there are; None if nobody can say. Told at intervals."""

    def lease_renewed(self) -> None:
        """The controller has renewed its lease."""

    def store_waited(self, seconds: float, error: str) -> None:
        """The store did not answer; the call was repeated after `seconds`. A note is told, too,
        when waiting begins and when it is over."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def stop(self) -> None:
        """The sweep stops; nothing follows."""


class Quiet:
    """Shows nothing: the start of displays that care for some events alone."""

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Show nothing."""

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Show nothing."""

    def worker_left(self, worker: int, why: str) -> None:
        """Show nothing."""

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """Show nothing."""

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Show nothing."""

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """Show nothing."""

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Show nothing."""

    def standing(self, trials: Mapping[TrialState, int], left_s: float | None) -> None:
        """Show nothing."""

    def lease_renewed(self) -> None:
        """Show nothing."""

    def store_waited(self, seconds: float, error: str) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def stop(self) -> None:
        """Show nothing."""


def reason(failure: Failure | None) -> str:
    """Why a trial ended, in brackets behind its state; empty if it did not fail."""
    if failure is None:
        return ""
    message = failure.message.splitlines()[0] if failure.message else ""
    return f" ({failure.unit}: {failure.error_type}: {message})"
