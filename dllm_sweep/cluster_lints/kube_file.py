"""A KubeRay manifest as the lints see it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dllm_sweep.cluster_lints.findings import inside, mapping, sequence, text
from dllm_sweep.yaml_places import Place

SPECS: Mapping[str, Place] = {
    "RayCluster": ("spec",),
    "RayJob": ("spec", "rayClusterSpec"),
    "RayService": ("spec", "rayClusterConfig"),
}
"""Where each kind of manifest describes the cluster."""

GPU = "nvidia.com/gpu"


@dataclass(frozen=True)
class Group:
    """The head, or a group of equal workers."""

    name: str
    start: Place
    data: Mapping[str, Any]
    is_head: bool

    def place(self, *more: str | int) -> Place:
        """Where the group, or something in it, stands."""
        return (*self.start, *more)

    @property
    def pod(self) -> Mapping[str, Any]:
        """The pod's specification."""
        return mapping(inside(self.data, "template", "spec"))

    @property
    def ray_start(self) -> Mapping[str, Any]:
        """What is handed to `ray start`."""
        return mapping(self.data.get("rayStartParams"))

    def containers(self) -> Iterator[tuple[Place, Mapping[str, Any]]]:
        """Each container with its place."""
        for index, entry in enumerate(sequence(self.pod.get("containers"))):
            yield self.place("template", "spec", "containers", index), mapping(entry)

    def gpus(self) -> int:
        """GPUs that the first container may use."""
        for _, container in self.containers():
            count = inside(container, "resources", "limits", GPU)
            return int(count) if str(count).isdigit() else 0
        return 0

    @property
    def spot(self) -> bool:
        """Whether the pod is put onto machines that the cloud may take away."""
        chosen = " ".join(map(str, mapping(self.pod.get("nodeSelector")).items())).lower()
        return "spot" in chosen or "preemptible" in chosen


@dataclass(frozen=True)
class KubeFile:
    """One KubeRay manifest that has been read.

    Attributes:
        data: The manifest.
        kind: RayJob, RayCluster or RayService.
        pins: Package -> version that this program was tested with.
    """

    data: Mapping[str, Any]
    kind: str
    pins: Mapping[str, str]

    @property
    def start(self) -> Place:
        """Where the cluster is described."""
        return SPECS[self.kind]

    @property
    def spec(self) -> Mapping[str, Any]:
        """The manifest's own specification."""
        return mapping(self.data.get("spec"))

    @property
    def cluster(self) -> Mapping[str, Any]:
        """The description of the cluster."""
        return mapping(inside(self.data, *self.start))

    @property
    def head(self) -> Group:
        """The head's group."""
        data = mapping(self.cluster.get("headGroupSpec"))
        return Group("head", (*self.start, "headGroupSpec"), data, True)

    @property
    def workers(self) -> tuple[Group, ...]:
        """All groups of workers."""
        entries = sequence(self.cluster.get("workerGroupSpecs"))
        return tuple(
            Group(
                text(mapping(entry).get("groupName")),
                (*self.start, "workerGroupSpecs", index),
                mapping(entry),
                False,
            )
            for index, entry in enumerate(entries)
        )

    @property
    def groups(self) -> tuple[Group, ...]:
        """The head and all groups of workers."""
        return (self.head, *self.workers)

    def environment(self) -> Iterator[tuple[Place, Group, Mapping[str, Any]]]:
        """Every variable of every container."""
        for group in self.groups:
            for place, container in group.containers():
                for index, entry in enumerate(sequence(container.get("env"))):
                    yield (*place, "env", index), group, mapping(entry)
