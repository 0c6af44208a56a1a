"""Metrics of the running controller, served over HTTP for Prometheus and its like."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dllm_sweep.errors import InputError
from dllm_sweep.progress.base import Subject
from dllm_sweep.progress.exposition import CONTENT_TYPE, Family, Histogram
from dllm_sweep.records import EndReason, Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit

PATH = "/metrics"
UNIT_SECONDS = (1, 5, 15, 60, 300, 900, 1800, 3600, 10800)
"""Upper bounds of the buckets of the units' durations."""


class MetricsDisplay:
    """Counts events; every sample carries the sweep's name.

    Args:
        sweep: The sweep's name.
    """

    def __init__(self, sweep: str) -> None:
        self._sweep = sweep
        self._server: ThreadingHTTPServer | None = None
        self._workers: set[int] = set()
        self._busy: set[int] = set()
        name = "dllm_sweep_"
        self._units = Family(f"{name}units", "gauge", "Units of the sweep's trials.")
        self._before = Family(f"{name}units_done_before", "gauge", "Units done before this run.")
        self._done = Family(f"{name}units_done_total", "counter", "Units committed in this run.")
        self._failed = Family(f"{name}units_failed_total", "counter", "Units that ended badly.")
        self._seconds = Histogram(f"{name}unit_seconds", "How long units took.", UNIT_SECONDS)
        self._trials = Family(f"{name}trials", "gauge", "Trials by state.")
        self._worker_count = Family(f"{name}workers", "gauge", "Workers that are up.")
        self._left_count = Family(f"{name}workers_left_total", "counter", "Workers that went.")
        self._renewals = Family(f"{name}lease_renewals_total", "counter", "Renewals of the lease.")
        self._renewed = Family(
            f"{name}lease_renewed_timestamp_seconds", "gauge", "When the lease was last renewed."
        )
        self._waits = Family(f"{name}store_waits_total", "counter", "Waits for the store.")
        self._waited = Family(
            f"{name}store_wait_seconds_total", "counter", "Seconds waited for the store."
        )
        self._left = Family(
            f"{name}estimated_left_seconds", "gauge", "Estimated seconds until the sweep is done."
        )

    def serve(self, host: str, port: int) -> str:
        """Serve the metrics until `stop`; returns where, as a URL.

        Raises:
            InputError: If the port is taken or the address is not this machine's.
        """
        try:
            server = ThreadingHTTPServer((host, port), _handler(self.text))
        except OSError as error:
            raise InputError(
                f"metrics cannot be served on {host}:{port}: {error.strerror}; choose another"
                " --metrics-port or --metrics-host"
            ) from error
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        self._server = server
        return f"http://{host}:{server.server_address[1]}{PATH}"

    def text(self) -> str:
        """All metrics as they are now."""
        families = (value for value in vars(self).values() if isinstance(value, Family))
        return "".join(family.text() for family in families)

    def start(self, *, units: int, done: int, workers: int) -> None:
        """Begin to count."""
        self._units.set(units, sweep=self._sweep)
        self._before.set(done, sweep=self._sweep)
        self._renewals.add(0, sweep=self._sweep)
        self._waits.add(0, sweep=self._sweep)
        self._waited.add(0, sweep=self._sweep)
        self._count_workers()

    def worker_joined(self, worker: int, host: HostInfo) -> None:
        """Count it."""
        self._workers.add(worker)
        self._count_workers()

    def worker_left(self, worker: int, why: str) -> None:
        """Count it."""
        self._workers.discard(worker)
        self._busy.discard(worker)
        self._left_count.add(sweep=self._sweep)
        self._count_workers()

    def unit_started(self, worker: int, trial: Subject, unit: Unit) -> None:
        """The worker is busy."""
        self._workers.add(worker)
        self._busy.add(worker)
        self._count_workers()

    def unit_done(self, worker: int, trial: Subject, unit: Unit, wall_s: float) -> None:
        """Count it with its seconds; the worker is idle."""
        self._done.add(sweep=self._sweep, kind=unit.kind)
        self._seconds.observe(wall_s, sweep=self._sweep, kind=unit.kind)
        self._busy.discard(worker)
        self._count_workers()

    def unit_failed(self, worker: int, trial: Subject, unit: Unit, failure: Failure | None) -> None:
        """Count it by the failure's class; the worker is idle."""
        reason = EndReason.FENCED if failure is None else failure.reason
        self._failed.add(sweep=self._sweep, kind=unit.kind, reason=reason)
        self._busy.discard(worker)
        self._count_workers()

    def trial_ended(self, trial: Subject, state: TrialState, failure: Failure | None) -> None:
        """Nothing to count: `standing` tells how many trials are in which state."""

    def standing(self, trials: Mapping[TrialState, int], left_s: float | None) -> None:
        """Take the counts over."""
        for state in TrialState:
            self._trials.set(trials.get(state, 0), sweep=self._sweep, state=state)
        self._left.clear()
        if left_s is not None:
            self._left.set(left_s, sweep=self._sweep)

    def lease_renewed(self) -> None:
        """Count it."""
        self._renewals.add(sweep=self._sweep)
        self._renewed.set(time.time(), sweep=self._sweep)

    def store_waited(self, seconds: float, error: str) -> None:
        """Count it with its seconds."""
        self._waits.add(sweep=self._sweep)
        self._waited.add(seconds, sweep=self._sweep)

    def note(self, text: str) -> None:
        """Nothing to count."""

    def stop(self) -> None:
        """Serve no longer."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _count_workers(self) -> None:
        busy = len(self._busy)
        self._worker_count.set(busy, sweep=self._sweep, state="busy")
        self._worker_count.set(len(self._workers) - busy, sweep=self._sweep, state="idle")


def _handler(text: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == PATH
            body = (text() if found else f"metrics are at {PATH}\n").encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing: the terminal belongs to the sweep's progress."""

    return Handler
