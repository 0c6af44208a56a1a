"""`plan`: what a sweep would do."""

from __future__ import annotations

from pathlib import Path

import click

from dllm_sweep.cli.options import file_argument, format_option, store_option


@click.command("plan")
@file_argument
@store_option
@format_option()
def plan_command(file: Path, store: str | None, form: str) -> None:
    """Say what launching FILE would run, and why; nothing is written.

    Every trial is new, done, running, pending, failed, cancelled, or skipped with the reason.
    Costs are estimates in wall time of one worker.
    """
    from dllm_sweep.plan import make_plan, standings
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.plans import listing_of, summary_of
    from dllm_sweep.stored import preferred, stored_trials
    from dllm_sweep.sweep_file import read

    sweep_file = read(file)
    plan = make_plan(sweep_file)
    store = preferred(store, sweep_file.store_address)
    found = standings(plan, stored_trials(store, plan.name))
    show(listing_of(found, full=form != "table"), form)
    if form == "table":
        click.echo(summary_of(plan, found))
