"""One worker of the pool: an actor in a place of the size that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray

from dllm_sweep.records import Demand, HostInfo
from dllm_sweep.workers.actor import TrialActor
from dllm_sweep.workers.messages import WorkerOptions
from dllm_sweep.workers.store_actor import StoreLink


@dataclass
class Member:
    """One actor: starting until `host` is known, busy while `flight` is set, else idle.

    Attributes:
        id: Its number.
        demand: Its size.
        handle: The actor.
        group: What sets its place aside; None if it needs nothing.
        starting: The call that ends when it is up.
        since_s: When it was started, or became idle.
        host: Where it runs.
        node: The cluster's name of that machine.
        flight: The call of its unit.
        ping: A call that only shows that it lives.
    """

    id: int
    demand: Demand
    handle: Any
    group: Any | None
    starting: Any
    since_s: float
    host: HostInfo | None = None
    node: str = ""
    flight: Any | None = None
    ping: Any | None = None

    @property
    def is_idle(self) -> bool:
        """Whether it is up and has no unit."""
        return self.host is not None and self.flight is None

    @property
    def refs(self) -> Iterator[Any]:
        """Its calls that have not ended."""
        first = self.starting if self.host is None else self.flight
        return (ref for ref in (first, self.ping) if ref is not None)

    def end(self) -> None:
        """End its process and give its place back."""
        ray.kill(self.handle, no_restart=True)
        if self.group is not None:
            ray.util.remove_placement_group(self.group)


def start(
    number: int, demand: Demand, link: StoreLink, options: WorkerOptions, now_s: float
) -> Member:
    """Ask Ray for a worker; it comes up when there is room.

    Ray never repeats anything by itself: a repeated unit is a new attempt in the store.
    """
    group = _group(demand)
    handle = (
        ray.remote(TrialActor)
        .options(**_placement(demand, group), max_restarts=0, max_task_retries=0)
        .remote(link, options)
    )
    return Member(
        id=number,
        demand=demand,
        handle=handle,
        group=group,
        starting=handle.whereabouts.remote(),
        since_s=now_s,
    )


def _group(demand: Demand) -> Any | None:
    """A place for a worker with several GPUs, set aside whole on one machine."""
    if demand.gpus <= 1:
        return None
    bundle = {"CPU": demand.cpus, "GPU": demand.gpus}
    if demand.memory_bytes:
        bundle["memory"] = demand.memory_bytes
    selector = [dict(demand.labels)] if demand.labels else None
    return ray.util.placement_group(
        [bundle], strategy="STRICT_PACK", bundle_label_selector=selector
    )


def _placement(demand: Demand, group: Any | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"num_cpus": demand.cpus, "num_gpus": demand.gpus}
    if demand.memory_bytes:
        asked["memory"] = demand.memory_bytes
    if group is not None:
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)
        return asked | {"scheduling_strategy": strategy}
    if demand.labels:
        asked["label_selector"] = dict(demand.labels)
    return asked
