"""`plan`: what a sweep would do, and what it would cost on so many GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dllm_sweep.cli.options import file_argument, format_option, set_option, store_option

if TYPE_CHECKING:
    from dllm_sweep.outlook import Offer
    from dllm_sweep.plan import Plan
    from dllm_sweep.standings import Standing


@click.command("plan")
@file_argument
@set_option
@store_option
@click.option(
    "--gpus",
    type=click.IntRange(1, 100_000),
    help="Simulate the sweep on so many GPUs: how long it takes, and what it costs.",
)
@click.option("--price", type=click.FloatRange(min=0), help="With --gpus: of a GPU for an hour.")
@click.option(
    "--mtbf",
    type=click.FloatRange(min=0, min_open=True),
    metavar="HOURS",
    help="With --gpus: each machine fails once in so many hours, at random.",
)
@click.option(
    "--runs",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="With --gpus: simulate so often, with costs that are off as usual; more than one gives"
    " the median and the 90th percentile.",
)
@format_option()
def plan_command(
    file: Path,
    settings: tuple[str, ...],
    store: str | None,
    gpus: int | None,
    price: float | None,
    mtbf: float | None,
    runs: int,
    form: str,
) -> None:
    """Say what launching FILE would run, and why; nothing is written.

    Every trial is new, done, running, pending, failed, cancelled, or skipped with the reason.
    Costs are estimates in wall time of one worker. With --gpus, the sweep is simulated by the
    very code that runs it.
    """
    if gpus is None and (price, mtbf, runs) != (None, None, 1):
        raise click.UsageError("--price, --mtbf and --runs say how to simulate: add --gpus")
    from dllm_sweep.plan import make_plan
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.plans import listing_of, summary_of
    from dllm_sweep.standings import standings
    from dllm_sweep.stored import preferred, stored_trials
    from dllm_sweep.sweep_file import read

    sweep_file = read(file, settings)
    plan = make_plan(sweep_file, gpus=None if gpus is None else 1.0)
    store = preferred(store, sweep_file.store_address)
    found = standings(plan, stored_trials(store, plan.name))
    if gpus is None:
        show(listing_of(found, full=form != "table"), form)
    if form == "table":
        click.echo(summary_of(plan, found))
        _print_shared(found)
    if gpus is not None:
        from dllm_sweep.outlook import Offer

        offer = Offer(gpus=gpus, price=price, mtbf_h=mtbf, runs=runs)
        _simulate(plan, found, store, offer, form)


def _print_shared(found: Sequence[Standing]) -> None:
    """Print what the trials that would run have in common."""
    from dllm_sweep.outlook import LAUNCHED
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.simulations import shared_listing
    from dllm_sweep.sharing import shared_stages

    trials = [standing.trial for standing in found if standing.status in LAUNCHED]
    stages = shared_stages(trials)
    if stages:
        click.echo()
        show(shared_listing(stages), "table")
        click.echo()


def _simulate(
    plan: Plan, found: Sequence[Standing], store: str | None, offer: Offer, form: str
) -> None:
    """Print what the trials that would run come to."""
    from dllm_sweep.outlook import outlook
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.simulations import forecast_listing

    seen = outlook(plan, found, store, offer)
    show(forecast_listing(seen, offer, full=form != "table"), form)
