"""Lints about how a KubeRay manifest runs a sweep, and who else could."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found, inside, integer, mapping, text
from dllm_sweep.cluster_lints.kube_file import KubeFile

_STORE = "DLLM_SWEEP_STORE"
_SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|_KEY$|DLLM_SWEEP_STORE")
_MOST_RETRIES = 10
_PUBLIC = {"LoadBalancer", "NodePort"}


def api_version(manifest: KubeFile) -> Iterator[Found]:
    """A version of KubeRay's interface that is gone."""
    version = manifest.data.get("apiVersion")
    if version != "ray.io/v1":
        yield Found(("apiVersion",), f"{version} is not served any more", "write ray.io/v1")


def not_shut_down(manifest: KubeFile) -> Iterator[Found]:
    """A cluster that goes on costing money after its sweep."""
    if manifest.kind != "RayJob":
        return
    if manifest.spec.get("shutdownAfterJobFinishes") is not True:
        place = ("spec", "shutdownAfterJobFinishes")
        yield Found(place, "the cluster stays when the sweep is done", "write true")
    elif integer(manifest.spec.get("ttlSecondsAfterFinished")) is None:
        place = ("spec", "ttlSecondsAfterFinished")
        problem = "the cluster goes at once, with logs that nobody has read"
        yield Found(place, problem, "write 300 or so")


def backoff_limit(manifest: KubeFile) -> Iterator[Found]:
    """A job that is given up after its first lost head, or never."""
    if manifest.kind != "RayJob":
        return
    place = ("spec", "backoffLimit")
    limit = integer(manifest.spec.get("backoffLimit")) or 0
    if not 1 <= limit <= _MOST_RETRIES:
        problem = f"{limit} more tries: one lost head ends the sweep, or nothing ever does"
        yield Found(place, problem, "write 3: what was committed is not run again")


def entrypoint(manifest: KubeFile) -> Iterator[Found]:
    """A job that does not run a sweep, or starts a Ray of its own beside the cluster."""
    if manifest.kind != "RayJob":
        return
    command = text(manifest.spec.get("entrypoint"))
    place = ("spec", "entrypoint")
    if not re.search(r"dllm[-_]sweep\s+(launch|resume)\b", command):
        yield Found(place, "does not run a sweep", "write dllm-sweep launch ... --address auto")
    elif not re.search(r"--address[= ]auto\b", command):
        problem = "without --address auto it starts a Ray of its own on the head"
        yield Found(place, problem, "add --address auto")


def store_on_pod_disk(manifest: KubeFile) -> Iterator[Found]:
    """Results in a file that goes with its pod."""
    if manifest.kind != "RayJob":
        return
    if "--store" in text(manifest.spec.get("entrypoint")):
        problem = "a store on the command line is printed in every listing of jobs"
        yield Found(("spec", "entrypoint"), problem, f"set {_STORE} from a Secret")
    for _, group, variable in manifest.environment():
        if group.is_head and variable.get("name") == _STORE:
            return
    problem = f"no {_STORE}: the results are a file on a disk that goes with its pod"
    place = manifest.head.place("template", "spec", "containers")
    yield Found(place, problem, f"set {_STORE} to a Postgres database, from a Secret")


def secret_in_file(manifest: KubeFile) -> Iterator[Found]:
    """A password or token written down where everybody who has the file reads it."""
    for place, _, variable in manifest.environment():
        name = text(variable.get("name"))
        if not _SECRET_NAME.search(name) or name == "TOKENIZERS_PARALLELISM":
            continue
        if inside(variable, "valueFrom", "secretKeyRef") is None:
            problem = f"{name} is written here for all who read the file"
            yield Found(place, problem, "take it from a Secret: valueFrom.secretKeyRef")


def no_token_auth(manifest: KubeFile) -> Iterator[Found]:
    """A cluster on which everybody who reaches it can run code."""
    if inside(manifest.cluster, "authOptions", "mode") == "token":
        return
    modes = {
        group.name: variable.get("value")
        for _, group, variable in manifest.environment()
        if variable.get("name") == "RAY_AUTH_MODE"
    }
    if any(modes.get(group.name) != "token" for group in manifest.groups):
        problem = "no token: every pod that reaches the head can run code"
        yield Found((*manifest.start, "authOptions"), problem, "write authOptions: {mode: token}")


def public_service(manifest: KubeFile) -> Iterator[Found]:
    """A dashboard that the outside can reach."""
    head = manifest.head
    if text(head.data.get("serviceType")) in _PUBLIC:
        problem = f"a {head.data['serviceType']} opens the head to the outside"
        yield Found(head.place("serviceType"), problem, "write ClusterIP, and port-forward")
    if head.data.get("enableIngress"):
        problem = "an Ingress opens the dashboard to the outside"
        yield Found(head.place("enableIngress"), problem, "drop it, and port-forward")


def no_name(manifest: KubeFile) -> Iterator[Found]:
    """A manifest without a name."""
    if not mapping(manifest.data.get("metadata")).get("name"):
        yield Found(("metadata", "name"), "no name", "name the job as its sweep")
