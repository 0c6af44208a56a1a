"""What people and machines see of a running sweep: a live display on a terminal, plain or JSON
lines elsewhere, and metrics on request."""

from __future__ import annotations

import sys

from dllm_sweep.progress.base import Display, Quiet, Subject
from dllm_sweep.progress.lines import LinesDisplay
from dllm_sweep.progress.live import LiveDisplay
from dllm_sweep.progress.metrics import MetricsDisplay
from dllm_sweep.progress.plain import PlainDisplay
from dllm_sweep.progress.several import Several

__all__ = [
    "Display",
    "LinesDisplay",
    "LiveDisplay",
    "MetricsDisplay",
    "PlainDisplay",
    "Quiet",
    "Several",
    "Subject",
    "display",
]


def display(
    form: str = "text",
    *,
    sweep: str = "",
    metrics_port: int | None = None,
    metrics_host: str = "127.0.0.1",
) -> Display:
    """The display that suits standard output.

    Args:
        form: `text` or `json`.
        sweep: The sweep's name, which JSON lines and metrics carry.
        metrics_port: Where to serve metrics until the sweep stops; None is nowhere, 0 any port.
        metrics_host: The address that they are served on.

    Raises:
        InputError: If the metrics cannot be served there.
    """
    shown = _on_standard_output(form, sweep)
    if metrics_port is None:
        return shown
    metrics = MetricsDisplay(sweep)
    address = metrics.serve(metrics_host, metrics_port)
    shown.note(f"metrics: {address}")
    return Several(shown, metrics)


def _on_standard_output(form: str, sweep: str) -> Display:
    if form == "json":
        return LinesDisplay(sys.stdout, sweep)
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay(sys.stdout)
