"""`--detach`: handing a sweep to a cluster, and what can be done about it from anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from dllm_sweep.cli.options import any_store
from dllm_sweep.errors import InputError, StoreError

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.plan import Plan


def launch_detached(
    store: str | None, plan: Plan, options: Mapping[str, Any], *, reuse: bool
) -> None:
    """Plan a sweep where the store is reached from here, and run it as a job.

    A SQLite file is one of the cluster's head: the job plans there.
    """
    from dllm_sweep.jobs import Job, shipped_with
    from dllm_sweep.stored import resolve_store

    address = resolve_store(store)
    epoch = None
    if not address.startswith("sqlite"):
        with any_store(store) as opened:
            opened.plan_sweep(plan.name, plan.source, plan.trials, reuse=reuse)
            epoch = _epoch(opened, plan.name)
    job = Job(
        store=address,
        sweep=plan.name,
        source=plan.source,
        trials=plan.trials,
        reuse=reuse,
        options=_written(options),
        shipped=shipped_with(trial.spec for trial in plan.trials),
    )
    _submit(job, options, epoch)


def resume_detached(store: str | None, sweep: str | None, options: Mapping[str, Any]) -> None:
    """Run what is not finished of a sweep as a job.

    Raises:
        InputError: If the store is a file of the cluster's head and the sweep is not named.
    """
    from dllm_sweep.db import specs
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.jobs import Job, shipped_with
    from dllm_sweep.stored import resolve_store

    address = resolve_store(store)
    try:
        opened = open_store(address, create=False)
    except StoreError:
        if not address.startswith("sqlite"):
            raise
        if sweep is None:
            raise InputError(
                "the store is a file of the cluster's head: name the sweep to resume"
            ) from None
        _submit(Job(store=address, sweep=sweep, options=_written(options)), options, None)
        return
    try:
        row = opened.sweep(sweep)
        left = opened.reading(lambda connection: specs.unfinished(connection, row.id))
        epoch = _epoch(opened, row.name)
    finally:
        opened.close()
    job = Job(store=address, sweep=row.name, options=_written(options), shipped=shipped_with(left))
    _submit(job, options, epoch)


def _submit(job: Any, options: Mapping[str, Any], epoch: int | None) -> None:
    from dllm_sweep.db.engines import safe_url
    from dllm_sweep.jobs import submit

    name = submit(options["address"], job, epoch=epoch)
    shown = safe_url(job.store)
    click.echo(f"sweep {job.sweep!r} runs as job {name}; its store is {shown}")
    click.echo(
        "`dllm-sweep status`, `logs --follow`, `pause` and `cancel` work wherever that store"
    )
    click.echo(f"is reached; `ray job logs {name}` shows what the controller says")


def _written(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if value is not None}


def _epoch(store: SqlStore, sweep: str) -> int:
    """The number of the sweep's last controller."""
    (row,) = store.query("SELECT epoch FROM sweep WHERE name = ?", [sweep]).rows
    return int(row[0])
