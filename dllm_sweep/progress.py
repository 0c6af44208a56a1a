"""What a person sees of a running sweep: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

from dllm_sweep.records import Failure

if TYPE_CHECKING:
    from rich.console import RenderableType


class Display(Protocol):
    """Told of everything that happens, in the order in which it happens."""

    def start(self, *, units: int, done: int, workers: int) -> None:
        """The sweep starts with `done` of its `units` committed before."""

    def unit_started(self, worker: int, trial: str, unit: str) -> None:
        """A worker begins a unit."""

    def unit_done(self, worker: int, trial: str, unit: str, wall_s: float) -> None:
        """A unit was committed."""

    def trial_ended(self, trial: str, state: str, failure: Failure | None) -> None:
        """A trial succeeded, failed or went back into the queue."""

    def note(self, text: str) -> None:
        """Something the user should know."""

    def stop(self) -> None:
        """The sweep stops; nothing follows."""


class PlainDisplay:
    """One line for each event, with the seconds since the start."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream, self._zero = stream, time.monotonic()
        self._units = self._done = 0

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Say how much there is to do."""
        self._units, self._done = units, done
        self.note(f"{units - done} of {units} units to do on {workers} workers")

    def unit_started(self, worker: int, trial: str, unit: str) -> None:
        """Nothing: a line when it is done is enough."""

    def unit_done(self, worker: int, trial: str, unit: str, wall_s: float) -> None:
        """Print one line."""
        self._done += 1
        self.note(f"{self._done}/{self._units} {trial}: {unit} done in {wall_s:.1f} s")

    def trial_ended(self, trial: str, state: str, failure: Failure | None) -> None:
        """Print one line."""
        self.note(f"{trial}: {state}{_reason(failure)}")

    def note(self, text: str) -> None:
        """Print one line."""
        print(f"[{time.monotonic() - self._zero:7.1f}s] {text}", file=self._stream, flush=True)

    def stop(self) -> None:
        """Nothing is left on the screen to clear."""


class LiveDisplay:
    """A bar for the sweep and a line for each worker; what ended scrolls away above them."""

    def __init__(self) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = self._progress.add_task("units", total=None)
        self._workers: list[str] = []
        self._live = Live(get_renderable=self._picture, refresh_per_second=4)

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Show the bar."""
        self._workers = ["starting"] * workers
        self._progress.update(self._bar, total=units, completed=done)
        self._live.start()

    def unit_started(self, worker: int, trial: str, unit: str) -> None:
        """Show what the worker does."""
        self._workers[worker] = f"{trial}: {unit}"

    def unit_done(self, worker: int, trial: str, unit: str, wall_s: float) -> None:
        """Advance the bar."""
        self._workers[worker] = "idle"
        self._progress.advance(self._bar)

    def trial_ended(self, trial: str, state: str, failure: Failure | None) -> None:
        """Print one line above the bar."""
        self.note(f"{trial}: {state}{_reason(failure)}")

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self._live.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the bar as it stands, without the workers' lines."""
        self._workers = []
        self._live.stop()

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        lines = [
            Text(f"worker {i}  {work}", style="dim", no_wrap=True, overflow="ellipsis")
            for i, work in enumerate(self._workers)
        ]
        return Group(self._progress, *lines)


def display() -> Display:
    """The display that suits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay(sys.stdout)


def _reason(failure: Failure | None) -> str:
    if failure is None:
        return ""
    message = failure.message.splitlines()[0] if failure.message else ""
    return f" ({failure.unit}: {failure.error_type}: {message})"
