"""Lints about the pods of a KubeRay manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found, inside, integer, mapping, sequence, text
from dllm_sweep.cluster_lints.kube_file import GPU, KubeFile
from dllm_sweep.cluster_lints.software import pinned_image

_MEMORY_ENDS = ("Gi", "Mi", "Ti", "G", "M", "T")


def unpinned_image(manifest: KubeFile) -> Iterator[Found]:
    """A container image that is another one next week."""
    for group in manifest.groups:
        for place, container in group.containers():
            image = text(container.get("image"))
            if not pinned_image(image):
                problem = f"{image or 'no image'} is another image next week"
                yield Found((*place, "image"), problem, "name a version or a digest")


def images_differ(manifest: KubeFile) -> Iterator[Found]:
    """Pods with other software than the head's."""
    first: str | None = None
    for group in manifest.groups:
        for place, container in list(group.containers())[:1]:
            image = text(container.get("image"))
            first = first or image
            if image != first:
                problem = f"{image} here, {first} on the head: Ray refuses other versions"
                yield Found((*place, "image"), problem, f"write {first}")


def ray_version(manifest: KubeFile) -> Iterator[Found]:
    """A `rayVersion` that is not the image's, or not the one tested."""
    place = (*manifest.start, "rayVersion")
    said = text(manifest.cluster.get("rayVersion"))
    wanted = manifest.pins.get("ray")
    if not said:
        yield Found(place, "no rayVersion: KubeRay guesses what Ray can do", f"write {wanted}")
    elif wanted and said != wanted:
        yield Found(place, f"ray {said}, where {wanted} is tested", f"write {wanted}")
    for group in manifest.groups:
        for at, container in group.containers():
            image = text(container.get("image"))
            found = re.search(r"\bray[:-]?(\d+\.\d+\.\d+)", image)
            if found and found[1] != said:
                problem = f"the image has ray {found[1]}, rayVersion says {said or 'nothing'}"
                yield Found((*at, "image"), problem, "let both say the same")


def gpu_limits(manifest: KubeFile) -> Iterator[Found]:
    """GPUs that are asked for and allowed in different numbers, or left out."""
    for group in manifest.workers:
        for place, container in list(group.containers())[:1]:
            at = (*place, "resources")
            asked = inside(container, "resources", "requests", GPU)
            allowed = inside(container, "resources", "limits", GPU)
            if asked != allowed:
                problem = f"{asked or 'no'} GPUs asked for, {allowed or 'none'} allowed"
                yield Found(at, problem, f"write the same {GPU} in requests and limits")
            for name in ("cpu", "memory"):
                if inside(container, "resources", "limits", name) is None:
                    problem = f"no limit of {name}: Ray counts all that the machine has"
                    yield Found(at, problem, f"write {name} into requests and limits")


def no_workers(manifest: KubeFile) -> Iterator[Found]:
    """A cluster in which no trial can ever run."""
    able = [g for g in manifest.workers if g.gpus() and g.data.get("maxReplicas") != 0]
    if not able:
        place = (*manifest.start, "workerGroupSpecs")
        problem = "no group of workers has a GPU and may have pods: no trial can run"
        yield Found(place, problem, "add a group with a GPU")


def min_above_max(manifest: KubeFile) -> Iterator[Found]:
    """Numbers of pods that contradict each other."""
    for group in manifest.workers:
        least = integer(group.data.get("minReplicas")) or 0
        most = integer(group.data.get("maxReplicas"))
        now = integer(group.data.get("replicas"))
        if most is None:
            problem = "without maxReplicas the group may grow to two thousand million pods"
            yield Found(group.place(), problem, "say how many there may be")
        elif least > most or (now is not None and not least <= now <= most):
            problem = f"replicas {now} between {least} and {most} cannot be"
            yield Found(group.place("replicas"), problem, "min <= replicas <= max")


def head_takes_trials(manifest: KubeFile) -> Iterator[Found]:
    """A head on which Ray would place trials."""
    head = manifest.head
    for name in ("num-cpus", "num-gpus"):
        said = head.ray_start.get(name)
        if str(said) != "0" and (name == "num-cpus" or said is not None):
            problem = "the head takes trials, and one of them can take it down"
            yield Found(head.place("rayStartParams"), problem, f'write {name}: "0"')
    if head.gpus():
        place = head.place("template", "spec", "containers")
        yield Found(place, "the head has a GPU that nothing uses", f"drop {GPU}")


def head_on_spot(manifest: KubeFile) -> Iterator[Found]:
    """A head that the cloud may take away."""
    tolerated = str(sequence(manifest.head.pod.get("tolerations"))).lower()
    if manifest.head.spot or "spot" in tolerated or "preemptible" in tolerated:
        place = manifest.head.place("template", "spec")
        problem = "the cloud may take the head away, and the controller with it"
        yield Found(place, problem, "keep spot selectors and tolerations to the workers")


def spot_without_toleration(manifest: KubeFile) -> Iterator[Found]:
    """Workers that ask for spot machines, but may not be placed on them."""
    for group in manifest.workers:
        if group.spot and "spot" not in str(sequence(group.pod.get("tolerations"))).lower():
            place = group.place("template", "spec")
            problem = "spot machines are tainted: these pods wait for ever"
            yield Found(place, problem, "add a toleration for the taint of spot machines")


def not_text(manifest: KubeFile) -> Iterator[Found]:
    """Numbers where Kubernetes wants text."""
    for group in manifest.groups:
        for name, value in group.ray_start.items():
            if not isinstance(value, str):
                problem = f"{value!r} is refused: values here are text"
                yield Found(group.place("rayStartParams", name), problem, f'write "{value}"')
    for place, _, variable in manifest.environment():
        value = variable.get("value")
        if value is not None and not isinstance(value, str):
            problem = f"{value!r} is refused: values here are text"
            yield Found((*place, "value"), problem, f'write "{value}"')


def memory_unit(manifest: KubeFile) -> Iterator[Found]:
    """Memory in bytes where gigabytes were meant."""
    for group in manifest.groups:
        for place, container in group.containers():
            for key in ("requests", "limits"):
                value = inside(container, "resources", key, "memory")
                if value is not None and not str(value).endswith(_MEMORY_ENDS):
                    problem = f"{value} is counted in bytes"
                    yield Found((*place, "resources", key), problem, f"write {value}Gi")


def privileged_container(manifest: KubeFile) -> Iterator[Found]:
    """Pods with more rights than they need."""
    for group in manifest.groups:
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if group.pod.get(key):
                place = group.place("template", "spec", key)
                yield Found(place, f"{key} opens the machine to the pod", "drop it")
        for place, container in group.containers():
            if mapping(container.get("securityContext")).get("privileged"):
                problem = "a privileged container owns its machine"
                yield Found((*place, "securityContext"), problem, "drop privileged")
        inner = [mapping(c.get("securityContext")) for _, c in group.containers()]
        contexts = [mapping(group.pod.get("securityContext")), *inner]
        if not any(context.get("runAsNonRoot") for context in contexts):
            place = group.place("template", "spec")
            fix = "add securityContext: {runAsNonRoot: true}"
            yield Found(place, "nothing keeps the container from running as root", fix)


def idle_timeout(manifest: KubeFile) -> Iterator[Found]:
    """Idle pods that never go, or go at once."""
    place = (*manifest.start, "enableInTreeAutoscaling")
    if manifest.cluster.get("enableInTreeAutoscaling") is not True:
        problem = "without the autoscaler idle GPU pods stay until the end"
        yield Found(place, problem, "write enableInTreeAutoscaling: true")
        return
    seconds = integer(inside(manifest.cluster, "autoscalerOptions", "idleTimeoutSeconds"))
    if seconds is not None and not 60 <= seconds <= 3600:
        at = (*manifest.start, "autoscalerOptions", "idleTimeoutSeconds")
        yield Found(at, f"idle pods go after {seconds} s", "write 300 to 1200")
