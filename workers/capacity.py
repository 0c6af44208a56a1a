"""What a cluster can ever carry: the machines it has and those its autoscaler may add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from dllm_sweep.records import Demand

_OF_RAY = "ray.io/"
_GROUP_LABEL = f"{_OF_RAY}node-group"
UNLIMITED = 10**6
"""Stands for a group of machines without an upper number."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine, or a kind of machine that the autoscaler may start.

    Attributes:
        name: Host name or name of the kind.
        cpus: Cores.
        gpus: GPUs.
        memory_bytes: Main memory that Ray may give away.
        labels: Its labels.
        count: How many of them; 1 for a machine that is up.
        is_up: Whether it is there now.
        is_known: Whether anything is known of it; what is not is taken to carry any worker.
    """

    name: str
    cpus: float
    gpus: float = 0.0
    memory_bytes: float = math.inf
    labels: tuple[tuple[str, str], ...] = ()
    count: int = 1
    is_up: bool = True
    is_known: bool = True


def fits(machine: Machine, demand: Demand) -> int:
    """How many workers of a size one such machine carries, if nothing else runs on it."""
    if not machine.is_known:
        return UNLIMITED
    if not all(_matches(machine, *label) for label in demand.labels):
        return 0
    shares = [machine.cpus / demand.cpus if demand.cpus else math.inf]
    if demand.memory_bytes:
        shares.append(machine.memory_bytes / demand.memory_bytes)
    if demand.gpus:
        shares.append(_fits_gpus(machine.gpus, demand.gpus))
    # A machine's numbers come as floating point: 0.1 cores fit ten times into one.
    return math.floor(min(min(shares), UNLIMITED) + 1e-6)


def carries(machines: Sequence[Machine], demand: Demand) -> int:
    """How many workers of a size all machines together carry, also those not started yet."""
    return sum(machine.count * fits(machine, demand) for machine in machines)


def machines(kinds: Sequence[Machine] = ()) -> tuple[Machine, ...]:
    """The machines that are up, and of each of `kinds` as many as may still be started."""
    up = tuple(_of_node(node) for node in ray.nodes() if node["Alive"])
    groups = [dict(machine.labels).get(_GROUP_LABEL) for machine in up]
    more = (replace(kind, count=max(0, kind.count - groups.count(kind.name))) for kind in kinds)
    return (*up, *more)


def _fits_gpus(has: float, wants: float) -> float:
    """A share of a GPU never spans two of them."""
    return has * math.floor(1 / wants + 1e-6) if wants < 1 else has / wants


def _matches(machine: Machine, key: str, wanted: str) -> bool:
    """Whether a machine's label is as Ray's selectors say: `v`, `!v`, `in(a,b)`, `!in(a,b)`."""
    labels = dict(machine.labels)
    if key.startswith(_OF_RAY) and key not in labels and not machine.is_up:
        return True  # such as the GPU's type: Ray finds it out on the machine
    negated = wanted.startswith("!")
    values = wanted.removeprefix("!")
    if values.startswith("in(") and values.endswith(")"):
        values = values[3:-1]
    found = labels.get(key) in {value.strip() for value in values.split(",")}
    return found != negated


def _of_node(node: dict[str, Any]) -> Machine:
    return machine_of(node["NodeManagerHostname"], node["Resources"], node.get("Labels") or {})


def machine_of(
    name: str,
    has: Mapping[str, float],
    labels: Mapping[str, str],
    *,
    count: int = 1,
    is_up: bool = True,
) -> Machine:
    """A machine in the words of Ray's resources and labels."""
    return Machine(
        name=name,
        cpus=float(has.get("CPU", 0.0)),
        gpus=float(has.get("GPU", 0.0)),
        memory_bytes=float(has.get("memory", math.inf)),
        labels=tuple(sorted(labels.items())),
        count=count,
        is_up=is_up,
    )
