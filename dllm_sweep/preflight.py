"""Looking at a cluster before anything is claimed: what would fail there later is said now."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_sweep import cluster, shipping
from dllm_sweep.errors import ClusterError
from dllm_sweep.records import Demand

if TYPE_CHECKING:
    from dllm_sweep.workers.capacity import Machine

_PACKAGES = ("ray", "torch", "transformers")
_PATIENCE_S = 120.0
_LOOK_S = 2.0
_NAMED = 3
"""How many trials a message names of those that ask for the same."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one machine of the cluster says about itself.

    Attributes:
        machine: Host name and address.
        cpus: Cores that Ray may give away; a head that works for the others has none.
        versions: Of Python and the packages that the results depend on; empty where missing.
        code: Digest of this program's code there; empty where it is missing.
        store: Why it does not reach the store; empty if it does, or was not asked.
    """

    machine: str
    cpus: float
    versions: tuple[tuple[str, str], ...]
    code: str
    store: str = ""


def reports(store_url: str | None = None) -> tuple[Report, ...]:
    """Ask every machine of the cluster for a report.

    Args:
        store_url: The database server that each is to try; None asks for no try.

    Raises:
        ClusterError: If a machine does not answer.
    """
    asked = {node["NodeID"]: (node, _ask(node["NodeID"], store_url)) for node in _alive().values()}
    found: dict[str, Report] = {}
    until_s = time.monotonic() + _PATIENCE_S
    while asked:
        for node_id, report in _answers(asked).items():
            del asked[node_id]
            found[node_id] = report
        # Machines come and go: one that has gone meanwhile is not waited for.
        asked = {node_id: call for node_id, call in asked.items() if node_id in _alive()}
        if asked and time.monotonic() > until_s:
            names = ", ".join(_name_of(node) for node, _ in asked.values())
            raise ClusterError(
                f"{names}: no answer within {_PATIENCE_S:.0f} s; look at `ray status`, and take the"
                " machine out of the cluster or start Ray there again"
            )
    return tuple(found.values())


def reports_with_code(
    address: str, store_url: str | None, tell: Callable[[str], None]
) -> tuple[Report, ...]:
    """Ask every machine for a report, and send this program's code along if one lacks it.

    Args:
        address: The cluster that this process has joined.
        store_url: As for `reports`, which says what is raised, too.
        tell: Told that code is sent.
    """
    found = reports(store_url)
    if code_is_there(found):
        return found
    tell("the cluster's machines lack this version of dllm-sweep: sending it")
    cluster.ship_code(address)
    found = reports(store_url)
    if not code_is_there(found):
        raise ClusterError("the machines do not run the code that was sent to them")
    return found


def _answers(asked: Mapping[str, tuple[dict[str, Any], Any]]) -> dict[str, Report]:
    """The reports of machines that have answered within a moment."""
    import ray

    calls = {ref: (node_id, node) for node_id, (node, ref) in asked.items()}
    ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_LOOK_S)
    found = {}
    for ref in ready:
        node_id, node = calls[ref]
        try:
            found[node_id] = _report(node, ref)
        except ClusterError:
            if node_id in _alive():
                raise
    return found


def _alive() -> dict[str, dict[str, Any]]:
    import ray

    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def check_versions(found: Sequence[Report]) -> None:
    """Refuse machines that would give other numbers than the rest.

    Raises:
        ClusterError: If the workers' machines differ; it names the odd ones.
    """
    working = [report for report in found if report.cpus] or list(found)
    (usual, _), *_ = Counter(report.versions for report in working).most_common(1) or [((), 0)]
    odd = [report for report in working if report.versions != usual]
    missing = [name for name, version in usual if not version]
    if missing:
        raise ClusterError(
            f"{', '.join(missing)} not installed on the machines of the cluster (asked:"
            f" {working[0].machine}); use the image of docker/Dockerfile, or install"
            ' "dllm-sweep[worker]" there'
        )
    if odd:
        listed = "; ".join(_difference(report, dict(usual)) for report in odd)
        raise ClusterError(
            f"the machines have different versions, so results would not compare: {listed};"
            " install the same everywhere"
        )


def check_store(found: Sequence[Report]) -> None:
    """Refuse to start if a machine does not reach the store.

    Raises:
        ClusterError: It names the machine and what happened there.
    """
    cut = [report for report in found if report.store and report.cpus]
    if cut:
        raise ClusterError(
            f"{cut[0].machine} does not reach the store ({len(cut)} of {len(found)} machines):"
            f" {cut[0].store}"
        )


def code_is_there(found: Iterable[Report]) -> bool:
    """Whether all machines have this very code."""
    mine = shipping.digest()
    return all(report.code == mine for report in found)


def check_demands(demands: Mapping[str, Demand], machines: Sequence[Machine]) -> tuple[str, ...]:
    """Refuse trials that no machine can ever carry, which Ray would let wait for ever.

    Returns:
        What the user should know of trials that wait for machines which are still to come.

    Args:
        demands: What each trial asks for, by its label.
        machines: The cluster's, those that its autoscaler may start included.

    Raises:
        ClusterError: It says who asks for what, and what the largest machine offers.
    """
    from dllm_sweep.workers import capacity

    asking: dict[Demand, list[str]] = defaultdict(list)
    for label, demand in demands.items():
        asking[demand].append(label)
    too_large = [demand for demand in asking if not capacity.carries(machines, demand)]
    if too_large:
        asked = "; ".join(
            f"{_some(asking[demand])} ask for {words(demand)}" for demand in too_large
        )
        raise ClusterError(
            f"no machine can ever carry this: {asked}; {_offer(machines)}; ask for less in"
            " `resources` of the sweep file, or add machines"
        )
    up = [machine for machine in machines if machine.is_up]
    to_come = [demand for demand in asking if not capacity.carries(up, demand)]
    sure = [machine for machine in machines if machine.is_known]
    return tuple(
        _to_come(asking[demand], demand, sure=capacity.carries(sure, demand) > 0)
        for demand in to_come
    )


def _to_come(labels: Sequence[str], demand: Demand, *, sure: bool) -> str:
    unsure = "; it does not tell whether it can ever add one, so look at `ray status` if this lasts"
    return (
        f"{_some(labels)} wait for a machine with {words(demand)}: none is up, the cluster's"
        f" autoscaler is asked for it{'' if sure else unsure}"
    )


def waiting(demand: Demand, count: int, seconds: float) -> str:
    """What to tell of workers that no machine has room for."""
    return (
        f"{count} workers with {words(demand)} have found no machine for {seconds:.0f} s:"
        " `ray status` says what the cluster's autoscaler does; Ctrl-C stops"
    )


def words(demand: Demand) -> str:
    """A demand as a person would say it."""
    parts = [f"{demand.gpus:g} GPUs", f"{demand.cpus:g} CPUs"]
    if demand.memory_bytes:
        parts.append(f"{demand.memory_bytes / 2**30:.1f} GiB")
    parts += [f"label {key}={value}" for key, value in demand.labels]
    return " + ".join(parts)


def _offer(machines: Sequence[Machine]) -> str:
    if not machines:
        return "the cluster has no machine"
    most = max(machines, key=lambda machine: (machine.gpus, machine.cpus))
    labels = ", ".join(f"{k}={v}" for k, v in most.labels if not k.startswith("ray.io/"))
    offer = f"the largest machine ({most.name}) has {most.gpus:g} GPUs, {most.cpus:g} CPUs"
    offer += f", {most.memory_bytes / 2**30:.1f} GiB"
    return f"{offer}, labels: {labels or 'none'}"


def _some(labels: Sequence[str]) -> str:
    more = len(labels) - _NAMED
    return ", ".join(labels[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _ask(node_id: str, store_url: str | None) -> Any:
    import ray

    packages = _PACKAGES

    # Pickled by value, since it is no module's own function: the machine may lack our code.
    def look(store_url: str | None) -> tuple[dict[str, str], str, str]:
        import platform
        from importlib import metadata

        versions = {"python": platform.python_version()}
        for name in packages:
            try:
                versions[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                versions[name] = ""
        try:
            from dllm_sweep import shipping
            from dllm_sweep.db.connect import open_store
            from dllm_sweep.errors import StoreEmpty

            code = shipping.digest()
        except (ImportError, AttributeError):
            return versions, "", ""
        problem = ""
        if store_url is not None:
            try:
                open_store(store_url, create=False).close()
            except StoreEmpty:
                problem = ""
            except Exception as error:
                problem = str(error)
        return versions, code, problem

    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(look).options(num_cpus=0, scheduling_strategy=there).remote(store_url)


def _report(node: dict[str, Any], ref: Any) -> Report:
    import ray

    try:
        versions, code, problem = ray.get(ref)
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:300]
        raise ClusterError(f"{_name_of(node)} cannot run anything: {text}") from error
    return Report(
        machine=_name_of(node),
        cpus=node["Resources"].get("CPU", 0.0),
        versions=tuple(sorted(versions.items())),
        code=code,
        store=problem,
    )


def _name_of(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _difference(report: Report, usual: Mapping[str, str]) -> str:
    differing = [
        f"{name} {version or 'missing'} instead of {usual[name]}"
        for name, version in report.versions
        if usual[name] != version
    ]
    return f"{report.machine} has {', '.join(differing)}"
