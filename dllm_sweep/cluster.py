"""Ray from outside: joining a cluster, what may be wrong with that, and what trials get of it."""

from __future__ import annotations

import contextlib
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep import shipping
from dllm_sweep.errors import ClusterError, InputError
from dllm_sweep.records import Demand

if TYPE_CHECKING:
    from dllm_sweep.sweep_entries import Resources
    from dllm_sweep.workers.capacity import Machine

LOCAL = "local"
_CLIENT = "ray://"
_CPU_WORKER_BYTES = 2**30
_DAEMONS = ("gcs_server", "raylet")
_LOOK_S = 0.25
_ENDS_WITHIN_S = 1.5
_OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's smallest: nothing large travels through Ray here, and it would take 30 % of memory."""


def is_client(address: str) -> bool:
    """Whether the driver stays outside of the cluster."""
    return address.startswith(_CLIENT)


def refuse_file_from_outside(url: str, address: str) -> None:
    """Refuse a SQLite store where its machine stays outside of the cluster.

    Raises:
        ClusterError: It says what to do instead.
    """
    if is_client(address) and url.startswith("sqlite"):
        raise ClusterError(
            f"a SQLite store is a file of this machine, which {address!r} leaves outside of the"
            " cluster: use a Postgres store, or --detach, which keeps the file on the cluster's"
            " head"
        )


@contextlib.contextmanager
def connected(
    address: str,
    lost: Callable[[], None] = lambda: None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[None]:
    """Join a cluster, or start a Ray of our own on this machine, and leave it at the end.

    Args:
        address: The cluster's address, or `local`.
        lost: Called from a thread of its own if a Ray of our own has gone, as when a signal is
            sent to all processes of a terminal or a job; Ray itself would wait for a minute then.
        interrupted: Whether such a signal has come.

    Raises:
        ClusterError: If there is none, or it does not let us in.
    """
    import ray

    _join(address, {})
    # Ray prints why a worker died in many lines of its own, whatever `log_to_driver` says; the
    # controller says it in one.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    leaving = _watch(lost) if address == LOCAL else threading.Event()
    try:
        yield
    finally:
        if interrupted():
            # Leaving a Ray that is about to end would hang: the watch sees whether it does.
            time.sleep(_ENDS_WITHIN_S)
        leaving.set()
        ray.shutdown()


def _watch(lost: Callable[[], None]) -> threading.Event:
    """Call `lost` once a daemon of our own Ray has ended; returns what ends the watch."""
    import ray

    started = ray._private.worker._global_node.all_processes
    daemons = [info.process for name in _DAEMONS for info in started.get(name, ())]
    leaving = threading.Event()

    def look() -> None:
        while not leaving.wait(_LOOK_S):
            if any(daemon.poll() is not None for daemon in daemons):
                lost()
                return

    threading.Thread(target=look, name="ray-watch", daemon=True).start()
    return leaving


def ship_code(address: str) -> None:
    """Join again, with this program's code for machines that have none or another one.

    Raises:
        ClusterError: If the cluster cannot be joined any more.
    """
    import ray

    ray.shutdown()
    with tempfile.TemporaryDirectory() as folder:
        package = shipping.stage(Path(folder))
        _join(address, {"py_modules": [str(package)]})


def _join(address: str, runtime_env: Mapping[str, Any]) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    knock(address)
    if address == LOCAL:
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    if runtime_env:
        options["runtime_env"] = dict(runtime_env)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises bare ones, too, as when a machine is too busy to start
        raise ClusterError(f"Ray at {address!r} cannot be reached: {_advice(error)}") from error


TOKEN_ADVICE = (
    "copy ~/.ray/auth_token of the cluster's head to the same place on this machine (or set"
    " RAY_AUTH_TOKEN), and set RAY_AUTH_MODE=token"
)
_START_ADVICE = "start one with `ray start --head`, or leave --address out to run on this machine"
_KNOCK_S = 10.0


def knock(address: str) -> None:
    """Ask for a trifle first: Ray itself tries for long, and does not tell why it is not let in.

    Raises:
        ClusterError: If nobody answers at the address, or asks for another token.
    """
    import grpc
    import ray

    server, method = _door(address)
    if server is None:
        return
    try:
        with grpc.insecure_channel(server) as channel:
            channel.unary_unary(method)(b"", timeout=_KNOCK_S, metadata=_token())
    except grpc.RpcError as error:
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            raise ClusterError(
                f"Ray at {address!r} does not let us in: it asks for a token, and this machine has"
                f" none or another one; {TOKEN_ADVICE}"
            ) from error
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise ClusterError(
                f"Ray at {address!r} cannot be reached: nobody answers at {server}; {_START_ADVICE}"
            ) from error
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"this machine has no token, but RAY_AUTH_MODE asks for one; {TOKEN_ADVICE}"
        ) from error


def _door(address: str) -> tuple[str | None, str]:
    """The server behind an address and a call that it answers at once; None if there is none."""
    from ray._private.services import canonicalize_bootstrap_address

    if "://" in address and not is_client(address):
        return None, ""
    if is_client(address):
        return address.removeprefix(_CLIENT).partition("/")[0], "/ray.rpc.RayletDriver/ClusterInfo"
    with contextlib.suppress(ConnectionError, ValueError, OSError):
        server = None if address == LOCAL else canonicalize_bootstrap_address(address)
        return server, "/ray.rpc.NodeInfoGcsService/GetClusterId"
    return None, ""


def _token() -> tuple[tuple[str, str], ...]:
    """What a call shows to be let in, if this machine is set up for that."""
    from ray import _raylet

    native: Any = _raylet  # compiled: what it holds is not known to type checkers
    loader = native.AuthenticationTokenLoader.instance()
    return tuple(loader.get_token_for_http_header().items()) if loader.has_token() else ()


def _advice(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if "authentication" in text.lower():
        return f"{text[:200]}; {TOKEN_ADVICE}"
    if "version" in text.lower() and "mismatch" in text.lower():
        return f"{text[:300]}; install the cluster's versions of Ray and Python here"
    if "on this host" in text or "local raylet" in text.lower() or "can't find a node" in text:
        return (
            f"{text[:200]}; this machine is no part of the cluster: use ray://HEAD:10001, or"
            " --detach"
        )
    if "timed out during startup" in text:
        return f"{text[:200]}; this machine may be too busy: `dllm-sweep resume` tries again"
    return f"{text[:300]}; {_START_ADVICE}"


def demand_for(resources: Resources, machines: Sequence[Machine], trials: int) -> Demand:
    """What one worker gets: what is written, and the rest as suits the cluster.

    A worker gets one GPU and a core where there are GPUs. On CPUs the workers share the cores
    evenly, as many workers as there are trials, a gibibyte of memory for each.

    Args:
        resources: What the sweep file or the command line says.
        machines: The cluster's machines, those that may be started included.
        trials: How many workers there is work for at most.

    Raises:
        InputError: If more than one GPU is asked for, and not a whole number; or if nothing is
            asked for, no machine that is up can work, and none that may come is known.
    """
    machines = _known(resources, machines)
    some = max((machine.gpus for machine in machines), default=0.0)
    gpus = resources.gpus if resources.gpus is not None else min(1.0, some)
    if gpus > 1 and gpus % 1:
        raise InputError(f"resources: gpus {gpus:g}: more than one must be a whole number")
    cpus = resources.cpus or (1.0 if gpus else _even_share(machines, trials))
    return Demand(
        cpus=cpus,
        gpus=gpus,
        memory_bytes=resources.memory_bytes or 0,
        labels=tuple(sorted((resources.labels or {}).items())),
    )


def _known(resources: Resources, machines: Sequence[Machine]) -> list[Machine]:
    """The machines that show how large a worker may be."""
    known = [machine for machine in machines if machine.is_known]
    silent = len(known) < len(machines) and not any(m.cpus or m.gpus for m in known)
    if silent and resources.gpus is None:
        raise InputError(
            "the cluster's autoscaler does not tell which machines it adds, and none is up: say"
            " what a worker needs, --gpus-per-trial 1 or `resources: {gpus: 1}`"
        )
    return known


def _even_share(machines: Sequence[Machine], trials: int) -> float:
    up = [machine for machine in machines if machine.is_up and machine.cpus] or machines
    cores = sum(machine.cpus for machine in up)
    largest = max((machine.cpus for machine in up), default=1.0)
    memory = sum(machine.memory_bytes for machine in up)
    by_memory = UNBOUNDED if math.isinf(memory) else memory // _CPU_WORKER_BYTES
    workers = max(1, min(trials, int(cores), int(by_memory)))
    return min(max(1.0, cores // workers), largest)


UNBOUNDED = 10**6
