"""Which machines a cluster's autoscaler may add, as far as the cluster tells.

Ray itself does not tell (`ClusterConfig` stays empty outside of its makers' own service). With
`ray up`, the monitor's configuration file on the head does. KubeRay's autoscaler runs in a
container of its own, whose configuration no process of the cluster can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from dllm_sweep.workers.capacity import UNLIMITED, Machine, machine_of

_HEAD = "node:__internal_head__"
_PATIENCE_S = 60.0
_OPTION = "--autoscaling-config="
_STATUS = "__autoscaling_status"

UNKNOWN = Machine(
    name="whatever the autoscaler adds",
    cpus=math.inf,
    gpus=math.inf,
    count=UNLIMITED,
    is_up=False,
    is_known=False,
)
"""Stands for machines that an autoscaler may add without saying which."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the head's machine shows.

    Attributes:
        monitor: Whether Ray's monitor runs there.
        config: The autoscaler's configuration; None if there is none to read.
        reports: Whether an autoscaler has reported to the cluster, wherever it runs.
    """

    monitor: bool
    config: Mapping[str, Any] | None
    reports: bool


def startable() -> tuple[Machine, ...]:
    """The kinds of machines that the cluster's autoscaler may start; none without one.

    `UNKNOWN` is among them if it does not tell.
    """
    look = ray.remote(_look).options(num_cpus=0, max_retries=1, resources={_HEAD: 0.001})
    seen: _Seen = ray.get(look.remote(), timeout=_PATIENCE_S)
    if seen.config is not None:
        return tuple(kinds(seen.config))
    return (UNKNOWN,) if seen.reports and not seen.monitor else ()


def kinds(config: Mapping[str, Any]) -> Iterator[Machine]:
    """The kinds of machines that an autoscaler's configuration names, its head left out."""
    most = int(config.get("max_workers", UNLIMITED))
    for name, kind in (config.get("available_node_types") or {}).items():
        if name == config.get("head_node_type"):
            continue
        count = min(most, int(kind.get("max_workers", most)))
        resources = {key: float(value) for key, value in (kind.get("resources") or {}).items()}
        if resources:
            labels = kind.get("labels") or {}
            yield machine_of(name, resources, labels, count=count, is_up=False)
        elif count:
            yield UNKNOWN


def _look() -> _Seen:
    """Look at the processes of the head: the monitor's command line names its configuration."""
    address = ray.get_runtime_context().gcs_address
    commands = [words for words in _commands() if f"--gcs-address={address}" in words]
    options = [
        word.removeprefix(_OPTION)
        for words in commands
        for word in words
        if word.startswith(_OPTION)
    ]
    monitor = any(Path(word).name == "monitor.py" for words in commands for word in words)
    config = _read(Path(options[0]).expanduser()) if options else None
    return _Seen(monitor=monitor and not options, config=config, reports=_reports(address))


def _commands() -> Iterator[list[str]]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace").split("\0")
        except OSError:
            continue  # it has ended meanwhile, or is another user's


def _read(path: Path) -> Mapping[str, Any] | None:
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None


def _reports(address: str) -> bool:
    """Whether an autoscaler of the first or the second kind has told how it is."""
    from ray.autoscaler.v2.sdk import get_cluster_status
    from ray.experimental.internal_kv import _internal_kv_get

    second = int(get_cluster_status(address).stats.autoscaler_version or 0)
    return bool(second or _internal_kv_get(_STATUS))
