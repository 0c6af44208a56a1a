"""`status`, `show` and `logs`: one sweep, one trial, one attempt."""

from __future__ import annotations

import time

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option

_WATCH_S = 2.0


@click.command("status")
@click.argument("sweep", required=False)
@click.option("--watch", is_flag=True, help="Print again every two seconds until nothing is left.")
@store_option
@format_option()
def status_command(sweep: str | None, watch: bool, store: str | None, form: str) -> None:
    """Say how far SWEEP (the one launched last) is, trial by trial."""
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.trials import is_over, status_line, status_listing

    with existing_store(store) as opened:
        while True:
            row = opened.sweep(sweep)
            trials = opened.trials(row.id)
            show(status_listing(trials, full=form != "table"), form)
            if form == "table":
                click.echo(status_line(row, trials))
            if not watch or is_over(trials):
                return
            time.sleep(_WATCH_S)


@click.command("show")
@click.argument("trial")
@click.option("--sweep", help="The sweep, if several have the trial.")
@store_option
@format_option()
def show_command(trial: str, sweep: str | None, store: str | None, form: str) -> None:
    """Print everything about TRIAL, named by the beginning of its key."""
    from dllm_sweep.reports.trials import render_detail

    with existing_store(store) as opened:
        detail = opened.trial_detail(trial, sweep)
    click.echo(render_detail(detail, form), nl=False)


@click.command("logs")
@click.argument("trial")
@click.option("--attempt", type=int, help="Number of the attempt; the last one if left out.")
@click.option("--sweep", help="The sweep, if several have the trial.")
@store_option
def logs_command(trial: str, attempt: int | None, sweep: str | None, store: str | None) -> None:
    """Print the log of an attempt of TRIAL, and its traceback if it failed."""
    from dllm_sweep.reports.trials import log_text
    from dllm_sweep.stored import resolve_store
    from dllm_sweep.workers.files import root_for

    with existing_store(store) as opened:
        detail = opened.trial_detail(trial, sweep)
    click.echo(log_text(detail, attempt, root_for(resolve_store(store))), nl=False)
