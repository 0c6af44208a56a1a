"""Signs that a worker's process still runs, whatever it does: counts in Ray's own store of keys.

The call that runs a unit keeps the process's main thread, so no other call is answered meanwhile,
and signs of life to the sweep's store stop when that store is down. A thread beside the work counts
instead; it stands still if the process is stopped, or hangs in code that lets no Python run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import ray
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put

from dllm_sweep.workers.beat import FENCED_EXIT
from dllm_sweep.workers.member import Member

log = logging.getLogger(__name__)

SILENT_S = 120.0
"""Seconds without a sign after which a process is taken to hang.

Loading weights or compiling may let no Python run for some tens of seconds; a process that stays
away for two minutes costs its unit, and the third time in the same unit its trial.
"""
_LOOKS = 12
"""How often signs are looked for in that time."""
_NAMESPACE = b"dllm-sweep"


def begin(interval_s: float) -> None:
    """Count for this actor, every `interval_s` seconds, until its process ends; it does not
    outlive the Ray of its machine."""
    name = ray.get_runtime_context().get_actor_id()
    threading.Thread(target=_count, args=(name, interval_s), name="pulse", daemon=True).start()


def _count(name: str, interval_s: float) -> None:
    # An event that is never set serves as a clock that ends with the process.
    never, count, parent = threading.Event(), 0, os.getppid()
    while not never.wait(interval_s):
        if os.getppid() != parent:
            # Ray on this machine has ended without ending its workers, as after a cut link.
            os._exit(FENCED_EXIT)
        count += 1
        try:
            _internal_kv_put(name, str(count), overwrite=True, namespace=_NAMESPACE)
        except Exception as error:
            log.warning("no sign of life reached Ray; trying again: %s", error)


class Watch:
    """Notices members of a pool whose processes give no sign any more.

    Args:
        silent_s: Seconds without a sign after which a process is taken to hang.
        clock: Seconds that never run backwards.
    """

    def __init__(self, silent_s: float, clock: Callable[[], float]) -> None:
        self._silent_s, self._clock = silent_s, clock
        self._looked_s = clock()
        self._seen: dict[int, tuple[bytes | None, float]] = {}
        """Of each member its last count, and when it was new."""

    def silent(self, members: Iterable[Member]) -> list[Member]:
        """Those that have given no sign for too long."""
        now = self._clock()
        if now - self._looked_s < self._silent_s / _LOOKS:
            return []
        if now - self._looked_s > self._silent_s / 2:
            self._seen.clear()  # this process itself was stopped, and perhaps they with it
        self._looked_s = now
        up = [member for member in members if member.host is not None]
        try:
            self._seen = {member.id: self._look(member, now) for member in up}
        except Exception as error:
            log.warning("Ray does not tell which workers live: %s", error)
            self._seen.clear()
            return []
        return [member for member in up if now - self._seen[member.id][1] > self._silent_s]

    def _look(self, member: Member, now: float) -> tuple[bytes | None, float]:
        count = _internal_kv_get(_name(member), namespace=_NAMESPACE)
        known = self._seen.get(member.id)
        return known if known is not None and known[0] == count else (count, now)


def forget(member: Member) -> None:
    """Remove what a member that is gone has left in Ray's store of keys."""
    with contextlib.suppress(Exception):
        _internal_kv_del(_name(member), namespace=_NAMESPACE)


def kill(member: Member) -> None:
    """End a process that may be stopped: it does not hear what Ray tells it."""
    if member.host is None:
        return
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(member.node, soft=False)
    killer = ray.remote(_kill).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    killer.remote(member.host.pid)


def _kill(pid: int) -> None:
    """Kill a process of this machine if it is a worker still: numbers are given again."""
    with contextlib.suppress(OSError):
        if "TrialActor" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


def _name(member: Member) -> str:
    return str(member.handle._actor_id.hex())
