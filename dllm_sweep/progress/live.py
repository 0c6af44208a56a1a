"""The live display of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.progress.bar import counting_bar
from dllm_sweep.progress.base import Quiet, Subject, reason
from dllm_sweep.records import Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit

if TYPE_CHECKING:
    from rich.console import RenderableType

WORKERS_SHOWN = 16
"""More workers than this are counted in one line, so that the bar stays in sight."""


class LiveDisplay(Quiet):
    """A bar for the sweep and a line for each worker; what ended scrolls away above them."""

    def __init__(self) -> None:
        from rich.live import Live

        self._progress = counting_bar()
        self._bar = self._progress.add_task("units", total=None)
        self._workers: dict[int, str] = {}
        self._live = Live(get_renderable=self._picture, refresh_per_second=4)

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Show the bar."""
        self._progress.update(self._bar, total=units, completed=done)
        self._live.start()

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Give the worker a line."""
        self._change(worker, f"idle on {host.host}")

    def worker_left(self, worker: int, why: str) -> None:
        """Take its line away, and say why above the bar."""
        self._change(worker, None)
        self.note(f"worker {worker} is gone: {why}")

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """Show what the worker does."""
        self._change(worker, f"{trial.label}: {unit.key}")

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Advance the bar."""
        self._change(worker, "idle")
        self._progress.advance(self._bar)

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """Show that the worker is idle; why stands in the line about its trial."""
        if worker in self._workers:
            self._change(worker, "idle")

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Print one line above the bar."""
        self.note(f"{trial.label}: {state}{reason(failure)}")

    def note(self, text: str) -> None:
        """Print one line above the bar."""
        self._live.console.print(text, markup=False, highlight=False)

    def stop(self) -> None:
        """Leave the bar as it stands, without the workers' lines."""
        self._workers = {}
        self._live.stop()

    def _change(self, worker: int, doing: str | None) -> None:
        # The picture is drawn by a thread of its own: it must never see the mapping change.
        others = {number: text for number, text in self._workers.items() if number != worker}
        self._workers = others if doing is None else {**others, worker: doing}

    def _picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        workers = sorted(self._workers.items())
        texts = [f"worker {number}  {doing}" for number, doing in workers[:WORKERS_SHOWN]]
        if len(workers) > WORKERS_SHOWN:
            texts.append(f"and {len(workers) - WORKERS_SHOWN} workers more")
        lines = [Text(text, style="dim", no_wrap=True, overflow="ellipsis") for text in texts]
        return Group(self._progress, *lines)
