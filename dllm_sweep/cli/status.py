"""`status` and `sweeps`: how far one sweep is, and what sweeps a store has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option
from dllm_sweep.cli.pauses import heeding_ctrl_c

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

_WATCH_S = 2.0


@click.command("status")
@click.argument("sweep", required=False)
@click.option("--watch", is_flag=True, help="Print again every two seconds until nothing is left.")
@click.option("--all", "everything", is_flag=True, help="Every trial, however many there are.")
@store_option
@format_option()
def status_command(
    sweep: str | None, watch: bool, everything: bool, store: str | None, form: str
) -> None:
    """Say who runs SWEEP (the one launched last), how far it is, and how long it may take.

    Of a sweep with many trials the table has those that run, failed or wait; JSON and CSV always
    have all. Ctrl-C ends --watch; the sweep goes on.
    """
    with existing_store(store) as opened, heeding_ctrl_c() as pause:
        while not _print_status(opened, sweep, everything, form) and watch:
            pause(_WATCH_S)
            if form == "table":
                click.clear()


def _print_status(store: SqlStore, name: str | None, everything: bool, form: str) -> bool:
    """Print how a sweep stands; returns whether it is over."""
    from dllm_sweep.db import overview
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.status import lines_of, status_listing, status_text

    (standing,) = overview.sweeps(store, store.sweep(name).name)
    trials = lines_of(store, standing, everything=everything or form != "table")
    show(status_listing(trials, full=form != "table"), form)
    if form == "table":
        click.echo(status_text(standing, len(trials)))
    return standing.is_over


@click.command("sweeps")
@store_option
@format_option()
def sweeps_command(store: str | None, form: str) -> None:
    """List the sweeps of the store, launched last first: state, controller, trials, work left.

    A sweep is running, paused, stopped (work is left and nobody runs it), abandoned (its
    controller is gone without a word) or finished.
    """
    from dllm_sweep.db import overview
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.status import sweeps_listing

    with existing_store(store) as opened:
        found = overview.sweeps(opened)
    show(sweeps_listing(found, full=form != "table"), form, empty="no sweeps yet")
