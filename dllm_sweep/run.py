"""Running a sweep of the store: lease, Ray, workers, controller, and all of it given back."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dllm_sweep import cluster, preflight, process, shipping
from dllm_sweep.controller import LEASE_S, Controller, RunSummary, Stop
from dllm_sweep.errors import ClusterError, Fenced, SweepError
from dllm_sweep.interrupts import INTERRUPTED, Interrupts
from dllm_sweep.outfit import Outfit, Shelves
from dllm_sweep.progress import Display, display
from dllm_sweep.racing import Race
from dllm_sweep.records import OPEN_STATES, Lease

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.sweep_entries import Resources
    from dllm_sweep.workers.capacity import Machine
    from dllm_sweep.workers.ray_pool import RayPool
    from dllm_sweep.workers.store_actor import StoreLink


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How to run, apart from what. What is None here comes from the sweep file's `resources`.

    Attributes:
        address: `local` for a Ray of our own, `auto` for the cluster this machine belongs to,
            `HOST:PORT` or `ray://HOST:10001` for another one.
        gpus_per_trial: GPUs of one worker, fractions allowed; 0 asks for CPUs. If the file says
            nothing either, one where there are any.
        cpus_per_trial: Cores of one worker; by default CPU workers share the cores evenly.
        actors: Most workers at a time; None is as many as the cluster carries.
        batch_size: Sequences in one forward pass; by default what suits the device.
        takeover: Take the sweep from another controller, even if it lives.
        race: Give up trials whose scores have collapsed.
        files: Folder, or URL of a folder, for logs, answers and weights; None is beside the store.
        idle_s: Seconds after which a worker that nothing is left for is let go.
        log_format: `text` or `json`.
        metrics_port: Where to serve metrics; None is nowhere.
        metrics_host: The address that they are served on.
        bench: What does the work in a worker, `module:Class`.
    """

    address: str = cluster.LOCAL
    gpus_per_trial: float | None = None
    cpus_per_trial: float | None = None
    actors: int | None = None
    batch_size: int | None = None
    takeover: bool = False
    race: bool = False
    files: str | None = None
    idle_s: float = 60.0
    log_format: str = "text"
    metrics_port: int | None = None
    metrics_host: str = "127.0.0.1"
    bench: str = "dllm_sweep.workers.trial:Workbench"

    @property
    def resources(self) -> Resources:
        """What is asked for here, in the sweep file's words."""
        from dllm_sweep.sweep_entries import Resources

        return Resources(
            gpus=self.gpus_per_trial, cpus=self.cpus_per_trial, batch_size=self.batch_size
        )


@dataclass(frozen=True, kw_only=True)
class _Run:
    """All that one run is made of."""

    url: str
    store: SqlStore
    lease: Lease
    options: RunOptions
    shown: Display
    stop: Stop
    signals: Interrupts


def run_sweep(store_url: str, sweep: str, options: RunOptions) -> RunSummary:
    """Run what is pending of a sweep until nothing is left or the user stops it.

    Args:
        store_url: The store.
        sweep: The sweep's name in it.
        options: Where and how wide to run.

    Raises:
        LeaseHeld: If another controller runs this sweep.
        ClusterError: If Ray does not come up, or can never place a worker that a trial needs.
        StoreError: If the store cannot be reached.
    """
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.db.patience import patient

    cluster.refuse_file_from_outside(store_url, options.address)
    store = open_store(store_url)
    shown = display(
        options.log_format,
        sweep=sweep,
        metrics_port=options.metrics_port,
        metrics_host=options.metrics_host,
    )
    stop = Stop()
    me, takeover = process.this_process(), options.takeover
    lease = process.take_lease(
        patient(store, patience_s=LEASE_S, tell=shown.note),
        sweep,
        me,
        seconds=LEASE_S,
        takeover=takeover,
        tell=shown.note,
    )
    run = _Run(
        url=store_url,
        store=store,
        lease=lease,
        options=options,
        shown=shown,
        stop=stop,
        signals=Interrupts(stop, shown),
    )
    try:
        # Ray swallows a Ctrl-C while it starts, and puts handlers of its own in place.
        with (
            run.signals.heeded(),
            cluster.connected(
                options.address, lost=lambda: _leave(run), interrupted=lambda: run.signals.any
            ),
            run.signals.heeded(),
        ):
            try:
                return _on_cluster(run)
            finally:
                # Before Ray is left, which may take long if a signal has hit it, too.
                _give_back(run)
    finally:
        _give_back(run)
        store.close()


def _give_back(run: _Run) -> None:
    # Whoever has taken the sweep over meanwhile has ended our attempts already.
    with contextlib.suppress(Fenced):
        run.store.release_lease(run.lease)


def _leave(run: _Run) -> NoReturn:
    """Give the sweep back and end this process: Ray is gone, and the main thread may hang in it."""
    run.shown.note("Ray on this machine has ended; `dllm-sweep resume` goes on from here")
    with contextlib.suppress(SweepError):
        _give_back(run)
    sys.stdout.flush()
    os._exit(INTERRUPTED if run.signals.any else ClusterError.exit_code)


def launch(
    file: str | Path,
    *,
    store: str | Path | None = None,
    settings: Sequence[str] = (),
    **options: Any,
) -> RunSummary:
    """Plan a sweep file, add what is new to the store, and run whatever is pending.

    Args:
        file: The sweep file.
        store: The store; None is the one that the command line uses.
        settings: Values that go before the file's, as `KEY=VALUE`.
        options: Fields of `RunOptions`, such as `address="auto"`; they go before the file's
            `resources`.

    Raises:
        InputError: If the file has problems or a task lacks data; nothing is written then.
    """
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.plan import check_data, make_plan
    from dllm_sweep.stored import preferred, resolve_store, stored_trials
    from dllm_sweep.sweep_file import read

    sweep_file = read(Path(file), settings)
    plan = make_plan(sweep_file)
    given = None if store is None else str(store)
    address = resolve_store(preferred(given, sweep_file.store_address))
    check_data(plan, stored_trials(address, plan.name))
    opened = open_store(address)
    try:
        opened.plan_sweep(plan.name, plan.source, plan.trials)
    finally:
        opened.close()
    return run_sweep(address, plan.name, RunOptions(**options))


def _on_cluster(run: _Run) -> RunSummary:
    """Look at the cluster, start workers, and hand over to the controller."""
    from dllm_sweep.db.patience import patient
    from dllm_sweep.workers import autoscaling, capacity

    _look_at_machines(run)
    kinds = () if run.options.address == cluster.LOCAL else autoscaling.startable()
    outfit = _outfit(run, capacity.machines(kinds))
    for note in preflight.check_demands(outfit.demands, outfit.machines):
        run.shown.note(note)
    link = _link(run.url)
    store = patient(
        link.open(),
        tell=run.shown.note,
        waited=run.shown.store_waited,
        stop=lambda: run.stop.now,
    )
    store.renew_lease(run.lease, seconds=LEASE_S)
    pool = _pool(run, link, outfit, kinds)
    try:
        return Controller(
            store=store,
            pool=pool,
            lease=run.lease,
            display=run.shown,
            stop=run.stop,
            demand_of=outfit.demand_of,
            race=Race() if run.options.race else None,
            history=store.unit_times(),
        ).run()
    finally:
        pool.close()


def _look_at_machines(run: _Run) -> None:
    """Make sure that all machines have the same versions, this code, and a way to the store."""
    if run.options.address == cluster.LOCAL:
        return
    server = None if run.url.startswith("sqlite") else run.url
    found = preflight.reports_with_code(run.options.address, server, run.shown.note)
    preflight.check_versions(found)
    preflight.check_store(found)


def _outfit(run: _Run, machines: Sequence[Machine]) -> Outfit:
    from dllm_sweep.demands import resources_of

    row = run.store.sweep(run.lease.sweep)
    return Outfit(
        given=run.options.resources,
        written=resources_of(row.source),
        machines=machines,
        trials=[trial for trial in run.store.trials(row.id) if trial.state in OPEN_STATES],
        limit=run.options.actors,
    )


def _link(url: str) -> StoreLink:
    """How workers reach the store: a SQLite file through its single writer."""
    from dllm_sweep.workers.store_actor import DirectLink, start_writer

    return start_writer(url) if url.startswith("sqlite") else DirectLink(url)


def _pool(run: _Run, link: StoreLink, outfit: Outfit, kinds: Sequence[Machine]) -> RayPool:
    from dllm_sweep.db import specs
    from dllm_sweep.sharing import shared_weights
    from dllm_sweep.sweep_file import stored_files
    from dllm_sweep.workers import files
    from dllm_sweep.workers.ray_pool import RayPool

    options = run.options
    source = run.store.sweep(run.lease.sweep).source
    here, remote = files.roots(options.files or stored_files(source), run.url)
    on_cluster = options.address != cluster.LOCAL
    peers = f"dllm-sweep-{run.lease.sweep_id}-{run.lease.epoch}"
    shelves = Shelves(peers, here) if on_cluster and not remote else None
    read = functools.cache(shipping.read)
    return RayPool(
        link=link,
        options_for=functools.partial(
            outfit.options_for,
            files=here,
            bench=options.bench,
            remote=remote,
            peers=peers if shelves else "",
            kept=shared_weights(run.store.reading(specs.unfinished)),
        ),
        on_node=shelves.serve if shelves else lambda _: None,
        on_waiting=lambda *seen: run.shown.note(preflight.waiting(*seen)) if on_cluster else None,
        files_of=lambda trial: tuple(map(read, shipping.paths_of(trial))) if on_cluster else (),
        limit=options.actors,
        idle_s=options.idle_s,
        kinds=kinds,
    )
