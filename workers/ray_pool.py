"""Workers that are Ray actors, started and let go as there is work for them."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from dllm_sweep.errors import ClusterError
from dllm_sweep.records import Claim, Demand, EndReason
from dllm_sweep.shipping import ShippedFile
from dllm_sweep.spec import TrialSpec, Unit
from dllm_sweep.workers import actor, capacity, deaths, pulse
from dllm_sweep.workers.capacity import Machine
from dllm_sweep.workers.member import Member, start
from dllm_sweep.workers.messages import Death, Finished, Outcome, Worker, WorkerOptions
from dllm_sweep.workers.store_actor import StoreLink
from dllm_sweep.workers.waiting import Waiting

log = logging.getLogger(__name__)

_IDLE_S = 60.0
_PING_S = 10.0
_MACHINES_S = 5.0
_STARTS_LIMIT = 5
_BACKOFF_S, _LONGEST_BACKOFF_S = 1.0, 60.0
_STARVED_S = 5.0
"""Seconds for which a worker finds no room until idle workers of other sizes make some."""


@dataclass
class _Trouble:
    """Starts of workers of one size that failed in a row."""

    failures: int = 0
    not_before_s: float = field(default=0.0)


class RayPool:
    """Workers that are Ray actors; one unit at a time on each.

    Ray never repeats anything by itself here (`max_restarts=0, max_task_retries=0`): a repeated
    unit is a new attempt in the store or it does not happen.

    Args:
        link: How workers reach the store.
        options_for: What a worker of a size is told.
        on_node: Told once of each node that has a worker.
        on_waiting: Told of a size of which no worker is up for long, how many wait, and for how
            many seconds.
        files_of: The files that have to travel with a trial.
        limit: Most workers in all; None is as many as the cluster carries.
        idle_s: Seconds after which an idle worker that is not wanted is ended.
        silent_s: Seconds without a sign of life after which a worker's process is killed.
        kinds: Machines that the autoscaler may start.
        clock: Seconds that never run backwards.
    """

    def __init__(
        self,
        *,
        link: StoreLink,
        options_for: Callable[[Demand], WorkerOptions],
        on_node: Callable[[str], None] = lambda _: None,
        on_waiting: Callable[[Demand, int, float], None] = lambda *_: None,
        files_of: Callable[[TrialSpec], tuple[ShippedFile, ...]] = lambda _: (),
        limit: int | None = None,
        idle_s: float = _IDLE_S,
        silent_s: float = pulse.SILENT_S,
        kinds: Sequence[Machine] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._link, self._options_for, self._limit = link, options_for, limit
        self._on_node, self._files_of = on_node, files_of
        self._nodes: set[str] = set()
        self._idle_s, self._kinds, self._clock = idle_s, tuple(kinds), clock
        self._members: dict[int, Member] = {}
        self._wanted: dict[Demand, int] = {}
        self._trouble: dict[Demand, _Trouble] = {}
        self._logs: dict[int, Path] = {}
        self._numbers = itertools.count()
        self._machines: tuple[Machine, ...] = ()
        self._looked_s = -_MACHINES_S
        self._silent_s, self._watch = silent_s, pulse.Watch(silent_s, clock)
        self._waiting = Waiting(on_waiting, clock)

    def want(self, counts: Mapping[Demand, int]) -> int:
        """Say how many workers of each size there is work for, busy ones included.

        No more are started than the cluster can ever carry; returns how many that are.
        """
        self._wanted = {demand: count for demand, count in counts.items() if count > 0}
        return self._adjust()

    def workers(self) -> tuple[Worker, ...]:
        """The workers that are up now, busy or idle, by number."""
        return tuple(
            Worker(id=member.id, demand=member.demand, host=member.host)
            for member in self._members.values()
            if member.host is not None
        )

    def submit(self, worker: int, claim: Claim, unit: Unit) -> None:
        """Start a unit on an idle worker."""
        member = self._members[worker]
        if not member.is_idle or member.host is None:
            raise RuntimeError(f"worker {worker} is not idle")
        files = self._options_for(member.demand).files
        self._logs[worker] = actor.log_path(files, claim, member.host)
        member.flight = member.handle.run.remote(claim, unit, self._files_of(claim.trial))

    def wait(self, timeout_s: float) -> list[Finished]:
        """Wait until units ended or a worker came up, or `timeout_s` is over.

        Raises:
            ClusterError: If workers that are wanted cannot be started at all.
        """
        self._ping()
        self._waiting.look(self._members.values())
        hanging = [self._hangs(member) for member in self._watch.silent(self._members.values())]
        timeout_s = 0.0 if hanging else timeout_s
        refs = {ref: member for member in self._members.values() for ref in member.refs}
        ended = [self._ended(refs[ref], ref) for ref in _first_ready(list(refs), timeout_s)]
        self._adjust()
        return [finished for finished in (*hanging, *ended) if finished is not None]

    def end(self, worker: int) -> None:
        """End a worker's process; nothing more is heard of its unit."""
        if worker in self._members:
            self._drop(self._members[worker])

    def log_path(self, worker: int) -> Path:
        """Where the output of a worker's last unit went, on its machine; the worker may be gone."""
        return self._logs[worker]

    def close(self) -> None:
        """End all workers."""
        for member in list(self._members.values()):
            self._drop(member)

    def _ended(self, member: Member, ref: Any) -> Finished | None:
        """Take note of a call that ended; a unit's end is told."""
        if member.id not in self._members:
            return None
        # From outside of the cluster, Ray's client hands back other objects that are equal.
        if ref == member.ping:
            self._answered(member)
            return None
        if ref == member.starting:
            self._came_up(member)
            return None
        member.flight, member.since_s = None, self._clock()
        result: Outcome | Death = deaths.result(ref)
        if isinstance(result, Death):
            self._drop(member)
        return Finished(worker=member.id, result=result)

    def _came_up(self, member: Member) -> None:
        try:
            member.host, member.node = ray.get(member.starting)
        except ray.exceptions.RayError as error:
            self._drop(member)
            self._start_failed(member.demand, error)
            return
        if member.node not in self._nodes:
            self._nodes.add(member.node)
            self._on_node(member.node)
        member.since_s = self._clock()
        self._trouble.pop(member.demand, None)

    def _start_failed(self, demand: Demand, error: BaseException) -> None:
        trouble = self._trouble.setdefault(demand, _Trouble())
        trouble.failures += 1
        pause_s = min(_BACKOFF_S * 2 ** min(trouble.failures - 1, 16), _LONGEST_BACKOFF_S)
        trouble.not_before_s = self._clock() + pause_s
        why = deaths.why_not_started(error)
        log.warning("a worker did not start: %s", why)
        up = any(m.host is not None and m.demand == demand for m in self._members.values())
        if trouble.failures >= _STARTS_LIMIT and not up:
            raise ClusterError(
                f"workers do not start ({_STARTS_LIMIT} tries): {why};"
                " `dllm-sweep doctor` on a machine of the cluster says what it lacks"
            )

    def _answered(self, member: Member) -> None:
        ref, member.ping = member.ping, None
        try:
            ray.get(ref)
        except ray.exceptions.RayError:
            # While a unit runs, the end of its own call tells more.
            if member.flight is None:
                self._drop(member)

    def _hangs(self, member: Member) -> Finished | None:
        """End a process that gives no sign of life; that its unit is lost is told."""
        pulse.kill(member)
        self._drop(member)
        text = f"the worker's process gave no sign of life for {self._silent_s:.0f} s: killed"
        lost = Finished(worker=member.id, result=Death(reason=EndReason.LOST, message=text))
        return None if member.flight is None else lost

    def _ping(self) -> None:
        """Ask idle workers for a sign of life: nothing else would tell that one has died."""
        now = self._clock()
        for member in self._members.values():
            if member.is_idle and member.ping is None and now - member.since_s >= _PING_S:
                member.ping = member.handle.ping.remote()

    def _adjust(self) -> int:
        """Start what is missing, and let go of what has been idle for long.

        Returns how many workers there should be.
        """
        targets = self._targets()
        starved = self._starved()
        for demand in {member.demand for member in self._members.values()}:
            self._let_go(demand, targets.get(demand, 0), 0.0 if starved else self._idle_s)
        for demand, target in targets.items():
            trouble = self._trouble.get(demand)
            if trouble is None or self._clock() >= trouble.not_before_s:
                self._start_missing(demand, target)
        return sum(targets.values())

    def _targets(self) -> dict[Demand, int]:
        """How many workers of each size there should be."""
        left = self._limit if self._limit is not None else capacity.UNLIMITED
        targets = {}
        for demand, count in self._wanted.items():
            targets[demand] = min(count, left, capacity.carries(self._cluster(), demand))
            left -= targets[demand]
        return targets

    def _cluster(self) -> tuple[Machine, ...]:
        if self._clock() - self._looked_s >= _MACHINES_S:
            self._machines, self._looked_s = capacity.machines(self._kinds), self._clock()
        return self._machines

    def _starved(self) -> bool:
        """Whether a worker has been waiting for room."""
        now = self._clock()
        members = self._members.values()
        return any(m.host is None and now - m.since_s >= _STARVED_S for m in members)

    def _let_go(self, demand: Demand, target: int, idle_s: float) -> None:
        """End workers beyond `target`: those that wait for room first, busy ones never."""
        mine = [member for member in self._members.values() if member.demand == demand]
        waiting = [member for member in mine if member.host is None]
        long_idle = self._clock() - idle_s
        idle = [member for member in mine if member.is_idle and member.since_s <= long_idle]
        surplus = max(0, len(mine) - target)
        for member in (*reversed(waiting), *reversed(idle))[:surplus]:
            self._drop(member)

    def _start_missing(self, demand: Demand, target: int) -> None:
        present = Counter(member.demand for member in self._members.values())[demand]
        for _ in range(target - present):
            self._start(demand)

    def _start(self, demand: Demand) -> None:
        number = next(self._numbers)
        options = self._options_for(demand)
        self._members[number] = start(number, demand, self._link, options, self._clock())

    def _drop(self, member: Member) -> None:
        del self._members[member.id]
        member.end()
        pulse.forget(member)


def _first_ready(refs: list[Any], timeout_s: float) -> list[Any]:
    """All that are ready once the first is, or none after `timeout_s`."""
    if not refs:
        time.sleep(timeout_s)
        return []
    ready, rest = ray.wait(refs, num_returns=1, timeout=timeout_s)
    if ready and rest:
        ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
    return list(ready)
