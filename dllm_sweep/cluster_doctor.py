"""What a cluster looks like to a sweep: the same looks that a launch takes before it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from dllm_sweep import cluster, preflight
from dllm_sweep.doctor import Finding
from dllm_sweep.errors import ClusterError

if TYPE_CHECKING:
    from dllm_sweep.preflight import Report
    from dllm_sweep.workers.capacity import Machine


def examine(address: str, store: str | None) -> tuple[Finding, ...]:
    """Look at a cluster. Never raises a SweepError: what goes wrong becomes a finding.

    Args:
        address: The cluster's address, as `launch` takes it.
        store: The store's address as the user wrote it; None is the default.
    """
    from dllm_sweep.stored import resolve_store

    url = resolve_store(store)
    try:
        cluster.refuse_file_from_outside(url, address)
        with cluster.connected(address):
            return tuple(_look(address, None if url.startswith("sqlite") else url))
    except ClusterError as error:
        return (Finding("cluster", "broken", address, str(error)),)


def _look(address: str, server: str | None) -> Iterator[Finding]:
    from dllm_sweep.workers import autoscaling, capacity

    sent: list[str] = []
    found = preflight.reports_with_code(address, server, sent.append)
    yield _machines(capacity.machines(autoscaling.startable()))
    yield _judged("versions", _versions(found), lambda: preflight.check_versions(found))
    if sent:
        yield Finding("code there", "note", "none or another one", "nothing: a launch sends ours")
    else:
        yield Finding("code there", "ok", "this dllm-sweep")
    if server is not None:
        text = f"tried from {len(found)} machines"
        yield _judged("store there", text, lambda: preflight.check_store(found))


def _machines(machines: Sequence[Machine]) -> Finding:
    up = [machine for machine in machines if machine.is_up]
    cpus, gpus = (sum(getattr(machine, name) for machine in up) for name in ("cpus", "gpus"))
    text = f"{len(up)} machines up, {cpus:g} CPUs, {gpus:g} GPUs"
    more = [_kind(machine) for machine in machines if not machine.is_up and machine.count]
    return Finding("cluster", "ok", "; ".join([text, *more]))


def _kind(machine: Machine) -> str:
    if not machine.is_known:
        return "an autoscaler that does not tell which machines it adds"
    return (
        f"up to {machine.count} more {machine.name} ({machine.cpus:g} CPUs, {machine.gpus:g} GPUs)"
    )


def _versions(found: Sequence[Report]) -> str:
    return ", ".join(f"{name} {version or 'missing'}" for name, version in found[0].versions)


def _judged(part: str, found: str, check: Callable[[], None]) -> Finding:
    try:
        check()
    except ClusterError as error:
        return Finding(part, "broken", found, str(error))
    return Finding(part, "ok", found)
