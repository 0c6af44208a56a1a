"""What repeated failures say: of a method, of one GPU, or of one unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dllm_sweep import policy
from dllm_sweep.board import Board
from dllm_sweep.pieces import Job
from dllm_sweep.progress import Display
from dllm_sweep.records import HostInfo

DEATHS_LIMIT = 3
"""Deaths of processes in one unit, on machines that live on, after which the unit is at fault."""


def device_of(host: HostInfo) -> str:
    """What tells a worker's GPU from all others; empty if it does not say."""
    return dict(host.versions).get("gpu", "")


class Breakers:
    """Counts failures and says what must not be tried any more.

    Args:
        board: Where trials are held back.
        display: Told once of each.
    """

    def __init__(self, board: Board, display: Display) -> None:
        self._board, self._display = board, display
        self._faults: list[policy.Fault] = []
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._devices: set[str] = set()
        self._quarantined: frozenset[str] = frozenset()

    def used(self, host: HostInfo) -> None:
        """Count a device among those that do work."""
        if device := device_of(host):
            self._devices.add(device)

    def failed(self, job: Job, fingerprint: str, host: HostInfo | None) -> None:
        """Count a trial that has failed for good; hold back what would fail in the same way."""
        fault = policy.Fault(
            trial_id=job.id,
            model=job.model,
            method=job.method,
            fingerprint=fingerprint,
            device=device_of(host) if host else "",
        )
        self._faults.append(fault)
        self._hold(fingerprint)
        self._quarantine()

    def died(self, job: Job, unit: str) -> bool:
        """Count a process that died in a unit; True if it is not bad luck any more."""
        self._deaths[job.id, unit] += 1
        return self._deaths[job.id, unit] >= DEATHS_LIMIT

    def barred(self, hosts: Mapping[int, HostInfo], workers: Iterable[int]) -> set[int]:
        """Workers that get nothing to do because their GPU is in quarantine."""
        if not self._quarantined:
            return set()
        return {worker for worker in workers if device_of(hosts[worker]) in self._quarantined}

    def _hold(self, fingerprint: str) -> None:
        held = policy.held_back(self._faults)
        for model, method in sorted(held - self._board.held):
            self._display.note(
                f"{model} {method}: three trials failed in the same place ({fingerprint});"
                " the others wait until you run `dllm-sweep resume`"
            )
        if held != self._board.held:
            self._board.hold(held)

    def _quarantine(self) -> None:
        blamed = policy.quarantined(self._faults, self._devices)
        for device in sorted(blamed - self._quarantined):
            self._display.note(
                f"GPU {device}: trials of three methods failed there and nowhere else; it gets"
                " no more work in this run: have it checked, then `dllm-sweep retry --failed`"
            )
        self._quarantined |= blamed
