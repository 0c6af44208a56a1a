"""Running a sweep of the store: lease, Ray, workers, controller, and all of it given back."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep import process
from dllm_sweep.controller import LEASE_S, Controller, RunSummary, Stop
from dllm_sweep.errors import ClusterError, Fenced, LeaseHeld
from dllm_sweep.progress import Display, display
from dllm_sweep.records import Demand, Holder, Lease, TrialState
from dllm_sweep.workers import files
from dllm_sweep.workers.messages import WorkerOptions

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store
    from dllm_sweep.sweep_entries import Resources

_CPU_WORKER_BYTES = 2**30
_GPU_BATCH, _CPU_BATCH = 32, 16
_OBJECT_STORE_BYTES = 80 * 2**20
"""Ray's smallest: nothing large travels through Ray here, and it would take 30 % of memory."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, apart from what.

    Attributes:
        address: `local` for a Ray of our own, `auto` for the cluster this machine belongs to,
            or a cluster's address.
        gpus_per_trial: GPUs of one worker, fractions allowed; on a cluster without GPUs the
            workers run on CPUs. 0 asks for CPUs.
        cpus_per_trial: Cores of one worker; None shares the cores evenly.
        actors: Number of workers; None is as many as the cluster carries.
        batch_size: Sequences in one forward pass; None is the device's default.
        takeover: Take the sweep from another controller, even if it lives.
    """

    address: str = "local"
    gpus_per_trial: float = 1.0
    cpus_per_trial: float | None = None
    actors: int | None = None
    batch_size: int | None = None
    takeover: bool = False


def run_sweep(store_url: str, sweep: str, options: RunOptions) -> RunSummary:
    """Run what is pending of a sweep until nothing is left or the user stops it.

    Args:
        store_url: The store.
        sweep: The sweep's name in it.
        options: Where and how wide to run.

    Raises:
        LeaseHeld: If another controller runs this sweep.
        ClusterError: If Ray does not come up or cannot place a worker.
        StoreError: If the store cannot be reached.
    """
    from dllm_sweep.db.connect import open_store

    store = open_store(store_url)
    shown, stop = display(), Stop()
    lease = _take_lease(store, sweep, takeover=options.takeover)
    try:
        # Ray swallows a Ctrl-C while it starts, and puts handlers of its own in place.
        with (
            _signals(_interrupted(stop, shown)),
            _ray(options.address),
            _signals(_interrupted(stop, shown)),
            _writer(store, store_url) as writer,
        ):
            return _run(writer, store_url, lease, options, shown, stop)
    finally:
        # Whoever has taken the sweep over meanwhile has ended our attempts already.
        with contextlib.suppress(Fenced):
            store.release_lease(lease)
        store.close()


def options_for(resources: Resources, given: Mapping[str, Any]) -> RunOptions:
    """Say how to run: what was given, else what the sweep file's `resources` say.

    Args:
        resources: The sweep file's.
        given: Fields of `RunOptions`; None stands for not given.
    """
    written = {
        "gpus_per_trial": resources.gpus,
        "cpus_per_trial": resources.cpus,
        "batch_size": resources.batch_size,
    }
    told = {name: value for name, value in given.items() if value is not None}
    return RunOptions(**{k: v for k, v in written.items() if v is not None} | told)


def launch(file: str | Path, *, store: str | Path | None = None, **options: Any) -> RunSummary:
    """Plan a sweep file, add what is new to the store, and run whatever is pending.

    Args:
        file: The sweep file.
        store: The store; None is the one that the command line uses.
        options: Fields of `RunOptions`, such as `address="auto"`; they go before the file's
            `resources`.

    Raises:
        SweepFileError: If the file has problems; nothing is written then.
    """
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.plan import make_plan
    from dllm_sweep.stored import resolve_store
    from dllm_sweep.sweep_file import read

    sweep_file = read(Path(file))
    plan = make_plan(sweep_file)
    address = resolve_store(None if store is None else str(store))
    opened = open_store(address)
    try:
        opened.plan_sweep(plan.name, plan.source, plan.trials)
    finally:
        opened.close()
    return run_sweep(address, plan.name, options_for(sweep_file.resources, options))


def _run(
    store: Store, url: str, lease: Lease, options: RunOptions, shown: Display, stop: Stop
) -> RunSummary:
    from dllm_sweep.workers.ray_pool import RayPool

    trials = [t for t in store.trials(lease.sweep_id) if t.state is TrialState.PENDING]
    size, demand = shape(options, len(trials), _capacity())
    if options.gpus_per_trial and not demand.gpus:
        shown.note("no GPU here: running on CPUs")
    device = "cuda" if demand.gpus else "cpu"
    batch = options.batch_size or (_GPU_BATCH if demand.gpus else _CPU_BATCH)
    worker = WorkerOptions(
        files=files.root_for(url), device=device, threads=int(demand.cpus) or 1, batch_size=batch
    )
    pool = RayPool(size=size, demand=demand, store=store, options=worker)
    try:
        return Controller(store=store, pool=pool, lease=lease, display=shown, stop=stop).run()
    finally:
        pool.close()


def _take_lease(store: Store, sweep: str, *, takeover: bool) -> Lease:
    holder = process.this_process()
    try:
        return store.take_lease(sweep, holder, seconds=LEASE_S, takeover=takeover)
    except LeaseHeld as held:
        # A killed controller cannot give its lease back; there is no need to wait for it here.
        last = Holder(host=held.host, pid=held.pid, process_started_s=held.process_started_s)
        if not process.is_gone(last):
            raise
    return store.take_lease(sweep, holder, seconds=LEASE_S, takeover=True)


@contextlib.contextmanager
def _ray(address: str) -> Iterator[None]:
    import ray

    shared: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    own = {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address=address, **shared, **(own if address == "local" else {}))
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise ClusterError(
            f"Ray at {address!r} cannot be reached: {text}; start one with `ray start --head`,"
            " or leave --address out to run on this machine"
        ) from error
    # Ray prints why a worker died in many lines of its own, whatever `log_to_driver` says; the
    # controller says it in one.
    ray._private.worker.print_to_stdstream = lambda *_, **__: None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _writer(store: Store, url: str) -> Iterator[Store]:
    """The store as workers reach it: through its single writer if it is a SQLite file."""
    if not url.startswith("sqlite"):
        yield store
        return
    from dllm_sweep.workers.store_actor import start_store_actor

    yield start_store_actor(url)


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What a Ray cluster has: in all, and the cores of its largest machine."""

    cpus: float
    gpus: float
    memory_bytes: float
    largest_cpus: float


def _capacity() -> Capacity:
    import ray

    has = ray.cluster_resources()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Capacity(
        cpus=has.get("CPU", 0.0),
        gpus=has.get("GPU", 0.0),
        memory_bytes=has.get("memory", _CPU_WORKER_BYTES),
        largest_cpus=max((machine.get("CPU", 0.0) for machine in machines), default=0.0),
    )


def shape(options: RunOptions, trials: int, has: Capacity) -> tuple[int, Demand]:
    """How many workers of what size: what the cluster carries, no more than there are trials.

    A CPU worker gets an even share of the cores, but never more than one machine has; a GPU
    worker gets one core unless `options` say otherwise.

    Raises:
        ClusterError: If the cluster cannot carry a single worker.
    """
    gpus = options.gpus_per_trial if has.gpus else 0.0
    least = options.cpus_per_trial or 1.0
    if gpus > has.gpus or least > has.largest_cpus:
        raise ClusterError(
            f"a trial asks for {gpus:g} GPUs and {least:g} CPUs, the cluster has {has.gpus:g} GPUs"
            f" and at most {has.largest_cpus:g} CPUs on a machine; ask for less with"
            " --gpus-per-trial and --cpus-per-trial"
        )
    by_device = has.gpus / gpus if gpus else has.cpus / least
    by_memory = has.memory_bytes / _CPU_WORKER_BYTES
    size = max(1, min(options.actors or trials, int(by_device), int(by_memory)))
    share = 1.0 if gpus else min(max(1.0, has.cpus // size), has.largest_cpus)
    return size, Demand(cpus=options.cpus_per_trial or share, gpus=gpus)


def _interrupted(stop: Stop, shown: Display) -> Callable[[int, object], None]:
    """A signal handler: the first signal drains, the second gives the trials back at once."""

    def handle(_signal: int, _frame: object) -> None:
        if stop.drain:
            stop.now = True
            shown.note("stopping now; unfinished units run again with `dllm-sweep resume`")
            return
        stop.drain = True
        shown.note("finishing the units in flight; press Ctrl-C again to stop at once")

    return handle


@contextlib.contextmanager
def _signals(handler: Callable[[int, object], None]) -> Iterator[None]:
    kept = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in kept.items():
            signal.signal(number, old)
