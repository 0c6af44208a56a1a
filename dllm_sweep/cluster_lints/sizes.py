"""Lints about how many machines there are and what each of them has."""

from __future__ import annotations

from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found, integer
from dllm_sweep.cluster_lints.ray_file import CLOUDS, NodeType, RayFile

_NAMES = {"cpu": "CPU", "cpus": "CPU", "gpu": "GPU", "gpus": "GPU", "num_gpus": "GPU"}
_SMALL_MEMORY = 1_000_000
_LONGEST_IDLE_MINUTES = 60


def min_above_max(cluster: RayFile) -> Iterator[Found]:
    """A type that must have more machines than it may have."""
    whole = integer(cluster.data.get("max_workers"))
    for kind in cluster.types:
        least, most = integer(kind.data.get("min_workers")), integer(kind.data.get("max_workers"))
        if least is not None and most is not None and least > most:
            problem = f"at least {least} machines of a type of which there may be {most}"
            yield Found(kind.place("min_workers"), problem, f"write at most {most}")
        elif least is not None and whole is not None and least > whole:
            problem = f"at least {least} machines in a cluster that may have {whole}"
            yield Found(kind.place("min_workers"), problem, f"write at most {whole}")


def max_above_cluster(cluster: RayFile) -> Iterator[Found]:
    """A type that may have more machines than the cluster."""
    whole = integer(cluster.data.get("max_workers"))
    for kind in cluster.types:
        most = integer(kind.data.get("max_workers"))
        if most is not None and whole is not None and most > whole:
            problem = f"up to {most} machines in a cluster that may have {whole}: Ray stops there"
            yield Found(kind.place("max_workers"), problem, "raise the file's own max_workers")


def negative_workers(cluster: RayFile) -> Iterator[Found]:
    """A number of machines below zero, which Ray's schema lets pass for node types."""
    for kind in cluster.types:
        for key in ("min_workers", "max_workers"):
            count = integer(kind.data.get(key))
            if count is not None and count < 0:
                yield Found(kind.place(key), f"{count} machines", "write 0 or more")


def no_max_workers(cluster: RayFile) -> Iterator[Found]:
    """A limit that is left out, which Ray fills in silently."""
    if cluster.provider in CLOUDS and "max_workers" not in cluster.data:
        problem = "Ray's own limit is 2 workers in all, whatever the node types say"
        yield Found(("max_workers",), problem, "say how many workers there may be in all")
    for kind in cluster.workers:
        if "max_workers" not in kind.data:
            problem = "without max_workers this type may take every place in the cluster"
            yield Found(kind.place(), problem, "say how many there may be")


def ignored_min_workers(cluster: RayFile) -> Iterator[Found]:
    """A top-level `min_workers`, which Ray drops without a word."""
    if "min_workers" in cluster.data and cluster.provider != "local":
        problem = "Ray drops min_workers here without a word"
        yield Found(("min_workers",), problem, "write it into the node types")


def no_workers(cluster: RayFile) -> Iterator[Found]:
    """A cluster in which no trial can ever run."""
    if cluster.data.get("max_workers") == 0:
        yield Found(("max_workers",), "a head alone: no trial can run", "allow workers")
    elif cluster.types and not any(_useful(kind) for kind in cluster.workers):
        problem = "no node type has a GPU and may have machines: no trial can run"
        yield Found(("available_node_types",), problem, "add a worker type with a GPU")


def _useful(kind: NodeType) -> bool:
    return kind.wants_gpus and kind.data.get("max_workers") != 0


def gpu_count(cluster: RayFile) -> Iterator[Found]:
    """GPUs in `resources` that the machine does not have, or the other way round."""
    for kind in cluster.types:
        machine = kind.machine
        if machine is None or machine.gpus is None or not machine.cuda:
            continue
        said = kind.resources.get("GPU")
        if said is None and any(_NAMES.get(str(n).lower()) == "GPU" for n in kind.resources):
            continue  # said by resource-name
        if kind.is_head and machine.gpus and not said:
            continue  # said by head-on-gpu-machine
        if (said or 0) != machine.gpus:
            place = kind.place("resources", "GPU") if said is not None else kind.place("resources")
            what = f"{machine.name} has {machine.gpus} GPUs, resources say {said or 'none'}"
            yield Found(place, f"{what}: Ray believes the file", f"write GPU: {machine.gpus}")


def core_count(cluster: RayFile) -> Iterator[Found]:
    """More cores in `resources` than the machine has, or none for the trials."""
    for kind in cluster.workers:
        cores = kind.machine.cores if kind.machine else None
        said = integer(kind.resources.get("CPU"))
        place = kind.place("resources", "CPU")
        if said is not None and cores is not None and said > cores:
            name = kind.machine.name if kind.machine else ""
            problem = f"{name} has {cores} cores, resources say {said}"
            yield Found(place, problem, f"write at most {cores}")
        elif kind.wants_gpus and said == 0:
            problem = "a worker needs a core beside its GPU: no trial can be placed here"
            yield Found(place, problem, "write the machine's number of cores")


def resource_name(cluster: RayFile) -> Iterator[Found]:
    """`gpu` for `GPU`: to Ray that is a resource of the user's own, which no trial asks for."""
    for kind in cluster.types:
        for name in kind.resources:
            meant = _NAMES.get(str(name).lower())
            if meant is not None and name != meant:
                problem = f"{name!r} is no resource that Ray knows: no trial asks for it"
                yield Found(kind.place("resources", name), problem, f"write {meant}")


def memory_unit(cluster: RayFile) -> Iterator[Found]:
    """Memory in gigabytes where Ray counts bytes."""
    for kind in cluster.types:
        for name in ("memory", "object_store_memory"):
            size = integer(kind.resources.get(name))
            if size is not None and 0 < size < _SMALL_MEMORY:
                problem = f"{name} is counted in bytes: {size} bytes carry nothing"
                yield Found(kind.place("resources", name), problem, f"write {size * 2**30}")


def idle_timeout(cluster: RayFile) -> Iterator[Found]:
    """Idle machines that go at once, or never."""
    minutes = cluster.data.get("idle_timeout_minutes", 5)
    yield from _idle(("idle_timeout_minutes",), minutes)
    for kind in cluster.workers:
        seconds = kind.data.get("idle_timeout_s")
        if isinstance(seconds, int | float):
            yield from _idle(kind.place("idle_timeout_s"), seconds / 60)


def _idle(place: tuple[str | int, ...], minutes: object) -> Iterator[Found]:
    if not isinstance(minutes, int | float):
        return
    if minutes < 1:
        problem = "machines go as soon as they wait for their next trial"
        yield Found(place, problem, "write 5 to 20 minutes")
    elif minutes > _LONGEST_IDLE_MINUTES:
        problem = f"idle machines are paid for {minutes:g} minutes"
        yield Found(place, problem, "write 5 to 20 minutes")


def no_upscaling(cluster: RayFile) -> Iterator[Found]:
    """An `upscaling_speed` of 0, which the schema allows and which adds no machine."""
    if cluster.data.get("upscaling_speed") == 0:
        problem = "at speed 0 the cluster grows by a handful of machines at a time"
        yield Found(("upscaling_speed",), problem, "write 1.0")
