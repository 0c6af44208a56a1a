"""A `ray up` cluster file as the lints see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dllm_sweep.cluster_lints.findings import inside, mapping, sequence, text
from dllm_sweep.cluster_lints.machines import Machine, machine_of
from dllm_sweep.yaml_places import Place

HEAD_STARTS = "head_start_ray_commands"
WORKER_STARTS = "worker_start_ray_commands"
SETUP_KEYS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
)
CLOUDS = ("aws", "gcp", "azure")


@dataclass(frozen=True)
class Command:
    """One shell command of the file."""

    place: Place
    text: str


@dataclass(frozen=True)
class NodeType:
    """One entry of `available_node_types`."""

    name: str
    data: Mapping[str, Any]
    is_head: bool
    provider: str

    def place(self, *more: str | int) -> Place:
        """Where the type, or something in it, stands."""
        return ("available_node_types", self.name, *more)

    @property
    def resources(self) -> Mapping[str, Any]:
        """What the file says that a node of this type has."""
        return mapping(self.data.get("resources"))

    @property
    def node_config(self) -> Mapping[str, Any]:
        """What the cloud is asked for."""
        return mapping(self.data.get("node_config"))

    @cached_property
    def machine(self) -> Machine | None:
        """The machine that the cloud is asked for, if the file names one."""
        return machine_of(self.provider, self.node_config)

    @property
    def spot(self) -> bool:
        """Whether the cloud may take such a node away."""
        config = self.node_config
        market = text(inside(config, "InstanceMarketOptions", "MarketType")).lower()
        scheduling = mapping(config.get("scheduling"))
        model = text(scheduling.get("provisioningModel")).upper()
        preemptible = any(
            mapping(entry).get("preemptible") is True
            for entry in (scheduling, *sequence(config.get("scheduling")))
        )
        azure = text(inside(config, "azure_arm_parameters", "priority")).lower()
        bought = bool(market) and market != "capacity-block"
        return bought or model == "SPOT" or preemptible or azure == "spot"

    @property
    def wants_gpus(self) -> bool:
        """Whether a node of this type has GPUs, by what the file says or by its machine."""
        known = self.machine.gpus if self.machine else None
        return bool(self.resources.get("GPU") or known)


@dataclass(frozen=True)
class RayFile:
    """A cluster file that has been read.

    Attributes:
        data: The file's mapping.
        folder: Where `ray up` would be run: the file's folder.
        pins: Package -> version that this program was tested with.
    """

    data: Mapping[str, Any]
    folder: Path
    pins: Mapping[str, str]

    @property
    def provider(self) -> str:
        """Name of the cloud."""
        return text(inside(self.data, "provider", "type"))

    @cached_property
    def types(self) -> tuple[NodeType, ...]:
        """All node types, in the order of the file."""
        head = self.data.get("head_node_type")
        entries = mapping(self.data.get("available_node_types")).items()
        return tuple(NodeType(n, mapping(d), n == head, self.provider) for n, d in entries)

    @property
    def heads(self) -> tuple[NodeType, ...]:
        """The head's type; none in a file without one."""
        return tuple(kind for kind in self.types if kind.is_head)

    @property
    def workers(self) -> tuple[NodeType, ...]:
        """All types but the head's."""
        return tuple(kind for kind in self.types if not kind.is_head)

    def commands(self, *keys: str) -> Iterator[Command]:
        """The commands below `keys` of the file's top."""
        for key in keys:
            yield from _commands(self.data.get(key), (key,))

    def type_commands(self, *keys: str) -> Iterator[Command]:
        """The commands below `keys` of every node type."""
        for kind in self.types:
            for key in keys:
                yield from _commands(kind.data.get(key), kind.place(key))

    def all_commands(self) -> Iterator[Command]:
        """Every command of the file."""
        yield from self.commands(*SETUP_KEYS, HEAD_STARTS, WORKER_STARTS)
        yield from self.type_commands("initialization_commands", "worker_setup_commands")

    def setups(self) -> Iterator[tuple[str, Place, tuple[Command, ...]]]:
        """What prepares the head and each type of worker: role, place to blame, commands."""
        common = tuple(self.commands("setup_commands"))
        head = tuple(self.commands("head_setup_commands"))
        workers = tuple(self.commands("worker_setup_commands"))
        yield "the head", ("setup_commands",), common + head
        for kind in self.workers:
            # Ray takes a type's own list instead of the file's, not in addition to it.
            if "worker_setup_commands" in kind.data:
                place = kind.place("worker_setup_commands")
                own = kind.data["worker_setup_commands"]
                yield f"workers of type {kind.name!r}", place, tuple(_commands(own, place))
            else:
                role = f"workers of type {kind.name!r}"
                yield role, ("setup_commands",), common + workers

    def images(self) -> Iterator[tuple[Place, str]]:
        """Container images that the file names."""
        for key in ("image", "head_image", "worker_image"):
            if image := text(inside(self.data, "docker", key)):
                yield ("docker", key), image
        for kind in self.types:
            if image := text(inside(kind.data, "docker", "worker_image")):
                yield kind.place("docker", "worker_image"), image


def _commands(value: Any, place: Place) -> Iterator[Command]:
    for index, entry in enumerate(sequence(value)):
        if isinstance(entry, str):
            yield Command((*place, index), entry)
