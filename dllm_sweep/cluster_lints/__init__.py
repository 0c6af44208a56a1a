"""Check cluster files offline: what Ray refuses, and what it lets pass but would cost dearly.

Two kinds of files are told apart by what they say: the ones for `ray up` and KubeRay's manifests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_sweep.cluster_lints import (
    clouds,
    heads,
    kube_cluster,
    kube_job,
    security,
    sizes,
    software,
)
from dllm_sweep.cluster_lints.findings import Finding, Found, words
from dllm_sweep.cluster_lints.kube_file import SPECS, KubeFile
from dllm_sweep.cluster_lints.pins import tested_versions
from dllm_sweep.cluster_lints.ray_file import RayFile
from dllm_sweep.cluster_lints.validator import refused_by_ray
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.yaml_places import Document, YamlProblems, load_all

RAY_LINTS: Mapping[str, Callable[[RayFile], Iterator[Found]]] = {
    "min-above-max": sizes.min_above_max,
    "max-above-cluster": sizes.max_above_cluster,
    "negative-workers": sizes.negative_workers,
    "no-max-workers": sizes.no_max_workers,
    "ignored-min-workers": sizes.ignored_min_workers,
    "no-workers": sizes.no_workers,
    "gpu-count": sizes.gpu_count,
    "core-count": sizes.core_count,
    "resource-name": sizes.resource_name,
    "memory-unit": sizes.memory_unit,
    "idle-timeout": sizes.idle_timeout,
    "no-upscaling": sizes.no_upscaling,
    "head-takes-trials": heads.head_takes_trials,
    "head-on-gpu-machine": heads.head_on_gpu_machine,
    "head-on-spot": heads.head_on_spot,
    "head-as-worker": heads.head_as_worker,
    "no-autoscaling-config": heads.no_autoscaling_config,
    "address-mismatch": heads.address_mismatch,
    "lonely-head": heads.lonely_head,
    "start-commands": heads.starts,
    "no-ulimit": heads.no_ulimit,
    "public-dashboard": security.public_dashboard,
    "no-token-auth": security.no_token_auth,
    "no-token-file": security.no_token_file,
    "secret-in-file": security.secret_in_file,
    "open-to-the-world": security.open_to_the_world,
    "privileged-container": security.privileged_container,
    "ssh-key": security.ssh_key,
    "unpinned-install": software.unpinned_install,
    "missing-constraints": software.missing_constraints,
    "version-disagrees": software.version_disagrees,
    "no-installation": software.no_installation,
    "python-version": software.python_version,
    "unpinned-image": software.unpinned_image,
    "piped-script": software.piped_script,
    "shell-syntax": software.shell_syntax,
    "missing-mount": software.missing_mount,
    "excluded-mount": software.excluded_mount,
    "code-changes-while-running": software.code_changes_while_running,
    "unknown-node-config": clouds.unknown_node_config,
    "node-config-values": clouds.node_config_values,
    "no-cloud-library": clouds.no_cloud_library,
    "unknown-machine": clouds.unknown_machine,
    "default-image": clouds.default_image,
    "spot-options": clouds.spot_options,
    "small-disk": clouds.small_disk,
    "region": clouds.region,
    "stopped-machines": clouds.stopped_machines,
    "labels": clouds.labels,
    "local-machines": clouds.local_machines,
}
"""What is checked of a file for `ray up`, beside what Ray itself refuses."""

KUBE_LINTS: Mapping[str, Callable[[KubeFile], Iterator[Found]]] = {
    "api-version": kube_job.api_version,
    "no-name": kube_job.no_name,
    "not-shut-down": kube_job.not_shut_down,
    "backoff-limit": kube_job.backoff_limit,
    "entrypoint": kube_job.entrypoint,
    "store-on-pod-disk": kube_job.store_on_pod_disk,
    "secret-in-file": kube_job.secret_in_file,
    "no-token-auth": kube_job.no_token_auth,
    "public-service": kube_job.public_service,
    "unpinned-image": kube_cluster.unpinned_image,
    "images-differ": kube_cluster.images_differ,
    "ray-version": kube_cluster.ray_version,
    "gpu-limits": kube_cluster.gpu_limits,
    "no-workers": kube_cluster.no_workers,
    "min-above-max": kube_cluster.min_above_max,
    "head-takes-trials": kube_cluster.head_takes_trials,
    "head-on-spot": kube_cluster.head_on_spot,
    "spot-without-toleration": kube_cluster.spot_without_toleration,
    "not-text": kube_cluster.not_text,
    "memory-unit": kube_cluster.memory_unit,
    "privileged-container": kube_cluster.privileged_container,
    "idle-timeout": kube_cluster.idle_timeout,
}
"""What is checked of a KubeRay manifest."""

REFUSED = "refused-by-ray"
NOT_YAML = "not-yaml"


@dataclass(frozen=True)
class Checked:
    """What came of checking one file.

    Attributes:
        kind: `ray up` or the manifest's kind.
        findings: What is wrong, by line.
        preparations: What is left to do on this machine first; no fault of the file.
    """

    kind: str
    findings: tuple[Finding, ...]
    preparations: tuple[str, ...]


def known(names: Iterable[str]) -> None:
    """Make sure that `names` are checks.

    Raises:
        UnknownName: If one is not.
    """
    lints = {*RAY_LINTS, *KUBE_LINTS, REFUSED, NOT_YAML}
    for name in names:
        if name not in lints:
            raise UnknownName("check", name, lints)


def check(path: Path) -> Checked:
    """Check one cluster file.

    Raises:
        InputError: If the file cannot be read or describes no cluster.
    """
    try:
        documents = load_all(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except YamlProblems as error:
        found = [Finding(str(path), None, NOT_YAML, "the file", p, "") for p in error.problems]
        return Checked("unknown", tuple(found), ())
    clusters = [document for document in documents if _kind(document.data)]
    if not clusters:
        raise InputError(
            f"{path}: describes no cluster: neither provider (for `ray up`) nor a kind of"
            f" KubeRay's ({', '.join(SPECS)})"
        )
    parts = [_check_document(path, document) for document in clusters]
    return Checked(
        ", ".join(part.kind for part in parts),
        tuple(finding for part in parts for finding in part.findings),
        tuple(line for part in parts for line in part.preparations),
    )


def _kind(data: Any) -> str | None:
    if not isinstance(data, Mapping):
        return None
    if data.get("kind") in SPECS:
        return str(data["kind"])
    return "ray up" if "provider" in data or "cluster_name" in data else None


def _check_document(path: Path, document: Document) -> Checked:
    kind = _kind(document.data) or ""
    pins = tested_versions(path.resolve().parent)
    found: list[tuple[str, Found]] = []
    todo: list[str] = []
    if kind == "ray up":
        cluster = RayFile(document.data, path.resolve().parent, pins)
        found += [(REFUSED, entry) for entry in refused_by_ray(document.data)]
        found += [(name, entry) for name, lint in RAY_LINTS.items() for entry in lint(cluster)]
        todo = software.preparations(cluster)
    else:
        manifest = KubeFile(document.data, kind, pins)
        found += [(name, entry) for name, lint in KUBE_LINTS.items() for entry in lint(manifest)]
    findings = [_finding(path, document, name, entry) for name, entry in found]
    findings.sort(key=lambda finding: finding.line or 0)
    return Checked(kind, tuple(findings), tuple(todo))


def _finding(path: Path, document: Document, lint: str, found: Found) -> Finding:
    place = tuple(part if isinstance(part, int) else str(part) for part in found.place)
    line = document.line(place)
    return Finding(str(path), line, lint, words(place), found.problem, found.fix)
