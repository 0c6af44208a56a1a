"""Structured logs: one JSON object a line for every event, for machines that collect them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO

from dllm_sweep.progress.base import Subject
from dllm_sweep.records import Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit


class LinesDisplay:
    """One line for each event, with the keys `time` (UTC), `event` and `sweep` and what belongs to
    it: `trial`, `key`, `attempt`, `unit`, `worker`, `host`, `state`, `seconds`, `failure`.

    Args:
        stream: Where the lines go.
        sweep: The sweep's name.
    """

    def __init__(self, stream: IO[str], sweep: str) -> None:
        self._stream, self._sweep = stream, sweep
        self._hosts: dict[int, str] = {}
        self._counts: dict[str, int] = {}

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Write how much there is to do."""
        self._write("sweep_started", units=units, units_done=done, workers=workers)

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Write where it runs."""
        self._hosts[worker] = host.host
        self._write(
            "worker_joined", worker=worker, host=host.host, pid=host.pid, device=host.device
        )

    def worker_left(self, worker: int, why: str) -> None:
        """Write why."""
        self._write("worker_left", worker=worker, host=self._hosts.pop(worker, None), reason=why)

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """Write who does what."""
        self._write("unit_started", **self._work(worker, trial, unit))

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Write who did what, and how long it took."""
        self._write("unit_done", **self._work(worker, trial, unit), seconds=round(wall_s, 3))

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """Write who failed at what, and why; without a failure somebody else owns the trial."""
        self._write("unit_failed", **self._work(worker, trial, unit), failure=_failure(failure))

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Write how, and why if it did not succeed."""
        self._write("trial_ended", **_trial(trial), state=str(state), failure=_failure(failure))

    def standing(self, trials: Mapping[TrialState, int], left_s: float | None) -> None:
        """Write the counts, if they are others than the last ones."""
        counts = {str(state): number for state, number in trials.items()}
        if counts != self._counts:
            self._write("standing", trials=counts, seconds_left=left_s)
        self._counts = counts

    def lease_renewed(self) -> None:
        """Write that it happened."""
        self._write("lease_renewed")

    def store_waited(self, seconds: float, error: str) -> None:
        """Write how long and why."""
        self._write("store_waited", seconds=round(seconds, 3), reason=error)

    def note(self, text: str) -> None:
        """Write the text."""
        self._write("note", text=text)

    def stop(self) -> None:
        """Write that nothing follows."""
        self._write("sweep_stopped")

    def _work(self, worker: int, trial: Subject, unit: Unit) -> dict[str, object]:
        where = {"worker": worker, "host": self._hosts.get(worker)}
        return {**_trial(trial), "unit": unit.key, "kind": unit.kind, **where}

    def _write(self, event: str, **values: object) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        record = {"time": now, "event": event, "sweep": self._sweep, **values}
        print(json.dumps(record, ensure_ascii=False), file=self._stream, flush=True)


def _trial(trial: Subject) -> dict[str, object]:
    return {"trial": trial.label, "key": trial.key, "attempt": trial.attempt}


def _failure(failure: Failure | None) -> dict[str, object] | None:
    if failure is None:
        return None
    return {
        "class": str(failure.reason),
        "error_type": failure.error_type,
        "message": failure.message,
        "fingerprint": failure.fingerprint,
        "unit": failure.unit,
    }
