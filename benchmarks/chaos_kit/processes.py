"""Processes of a campaign: found by their titles, stopped and killed by their numbers."""

from __future__ import annotations

import os
import signal
from pathlib import Path


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if there is no such process."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def resume(pid: int) -> None:
    """Let a stopped process go on."""
    send(pid, signal.SIGCONT)


def is_worker(pid: int) -> bool:
    """Whether a process is a worker of this campaign that does trials."""
    return _title(pid).startswith("ray::TrialActor") and _is_ours(pid)


def writer() -> int | None:
    """The process that owns the SQLite file; None if there is none."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        if _title(pid).startswith("ray::StoreActor") and _is_ours(pid):
            return pid
    return None


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _is_ours(pid: int) -> bool:
    """Whether this process started it, or one that it started."""
    while pid > 1:
        if pid == os.getpid():
            return True
        pid = _parent(pid)
    return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
