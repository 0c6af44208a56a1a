"""What the controller asks of a pool of workers; each worker has at most one unit in flight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dllm_sweep.records import Claim, Demand
from dllm_sweep.spec import Unit
from dllm_sweep.workers.messages import Finished, Worker


class Pool(Protocol):
    """Workers that come and go: machines join, vanish, and are let go when nothing is left to do.

    No call waits for a worker to start; only `wait` waits, and never longer than it is told.
    """

    def want(self, counts: Mapping[Demand, int]) -> int:
        """Say how many workers of each size there is work for, busy ones included; returns how many
        of them the cluster can ever carry.

        The pool starts what is missing as far as the cluster can ever carry it, and ends idle
        workers beyond that number once they have been idle for a while, so that an autoscaler can
        let their machines go. A size that is not named counts as 0.
        """

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are up now, busy or idle, by number."""

    def submit(self, worker: int, claim: Claim, unit: Unit) -> None:
        """Start a unit on an idle worker; its end comes from `wait`, also if it is gone."""

    def wait(self, timeout_s: float) -> list[Finished]:
        """Wait until units ended or a worker came up, or `timeout_s` is over.

        A worker that died has left `workers()` when this returns.
        """

    def end(self, worker: int) -> None:
        """End a worker's process; nothing more is heard of its unit. The pool starts another one
        as long as it is wanted."""

    def log_path(self, worker: int) -> Path:
        """Where the output of a worker's last unit went, on its machine; the worker may be gone."""

    def close(self) -> None:
        """End all workers."""
