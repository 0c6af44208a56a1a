"""`launch`, `resume` and `retry`: running what a plan or a store says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import click

from dllm_sweep.cli.lazy import INTERRUPTED
from dllm_sweep.cli.options import (
    Command,
    any_store,
    existing_store,
    file_argument,
    set_option,
    store_option,
)

_RUN_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--address",
        metavar="ADDR",
        default="local",
        show_default=True,
        help="A Ray of our own (local), the cluster that this machine belongs to (auto),"
        " HOST:PORT, or ray://HOST:10001 from outside.",
    ),
    click.option("--gpus-per-trial", type=click.FloatRange(min=0), help="Shares are fine: 0.5."),
    click.option("--cpus-per-trial", type=click.FloatRange(min=0, min_open=True), help="Cores."),
    click.option("--actors", type=click.IntRange(min=1), help="Number of workers."),
    click.option("--batch-size", type=click.IntRange(min=1), help="Sequences in a forward pass."),
    click.option("--takeover", is_flag=True, help="Take the sweep from another controller."),
    click.option("--race", is_flag=True, help="Give up trials whose scores have collapsed."),
    click.option("--files", metavar="FOLDER|URL", help="Where logs, answers and weights go."),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How progress is printed: text or one JSON object a line.",
    ),
    click.option(
        "--metrics-port",
        type=click.IntRange(0, 65535),
        help="Serve Prometheus metrics on this port.",
    ),
    click.option(
        "--metrics-host",
        default="127.0.0.1",
        show_default=True,
        help="Address that the metrics are served on.",
    ),
)


def run_options(command: Command) -> Command:
    """Say where and how wide to run; what is not written comes from the sweep file."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


_detach_option = click.option(
    "--detach",
    is_flag=True,
    help="Run as a Ray job on the cluster of --address, and return. A SQLite store is then a file"
    " of the cluster's head.",
)


@click.command("launch")
@file_argument
@set_option
@store_option
@click.option("--fresh", is_flag=True, help="Take over no results of equal trials elsewhere.")
@_detach_option
@run_options
@click.pass_context
def launch_command(
    context: click.Context,
    /,
    file: Path,
    settings: tuple[str, ...],
    store: str | None,
    fresh: bool,
    detach: bool,
    **options: Any,
) -> None:
    """Plan the sweep FILE, run what is not done yet, and print the leaderboard.

    Ctrl-C finishes the units in flight, a second Ctrl-C stops at once; `dllm-sweep resume` goes
    on from there.
    """
    from dllm_sweep.plan import check_data, make_plan
    from dllm_sweep.reports.plans import launch_note
    from dllm_sweep.standings import standings
    from dllm_sweep.stored import preferred, stored_trials
    from dllm_sweep.sweep_file import read

    sweep_file = read(file, settings)
    store = preferred(store, sweep_file.store_address)
    plan = make_plan(sweep_file)
    if detach:
        from dllm_sweep.cli.detached import launch_detached

        check_data(plan)
        launch_detached(store, plan, options, reuse=not fresh)
        return
    before = stored_trials(store, plan.name)
    check_data(plan, before)
    with any_store(store) as opened:
        opened.plan_sweep(plan.name, plan.source, plan.trials, reuse=not fresh)
    click.echo(launch_note(plan, standings(plan, before), before), err=_is_json(options))
    _run(context, store, plan.name, plan.protocol_keys, options)


@click.command("resume")
@click.argument("sweep", required=False)
@store_option
@_detach_option
@run_options
@click.pass_context
def resume_command(
    context: click.Context, /, sweep: str | None, store: str | None, detach: bool, **options: Any
) -> None:
    """Run whatever is not finished of SWEEP (the one launched last)."""
    if detach:
        from dllm_sweep.cli.detached import resume_detached

        resume_detached(store, sweep, options)
        return
    with existing_store(store) as opened:
        row = opened.sweep(sweep)
    _run(context, store, row.name, None, options)


@click.command("retry")
@click.argument("trials", nargs=-1)
@click.option("--failed", is_flag=True, help="All trials that failed.")
@click.option("--class", "reason", metavar="REASON", help="Those that ended so: GPU_OOM, TIMEOUT.")
@click.option("--sweep", help="The sweep; the one launched last if left out.")
@click.option("--no-run", is_flag=True, help="Only put them back; `resume` runs them.")
@store_option
@run_options
@click.pass_context
def retry_command(
    context: click.Context,
    /,
    trials: tuple[str, ...],
    failed: bool,
    reason: str | None,
    sweep: str | None,
    no_run: bool,
    store: str | None,
    **options: Any,
) -> None:
    """Put trials that failed, or TRIALS by the beginning of their keys, back and run them."""
    if not (trials or failed or reason):
        raise click.UsageError("name the trials, or say --failed or --class REASON")
    from dllm_sweep.cli.again import put_back

    with existing_store(store) as opened:
        row = opened.sweep(sweep)
        count = put_back(opened, row.id, trials, reason)
    click.echo(f"{count} trials of {row.name!r} wait again", err=_is_json(options))
    if count and not no_run:
        _run(context, store, row.name, None, options)


def _run(
    context: click.Context,
    store: str | None,
    sweep: str,
    protocol_keys: Collection[str] | None,
    options: dict[str, Any],
) -> None:
    """Run what is pending, print the leaderboard, and exit with what came of it."""
    from dllm_sweep.cli.again import run_pending
    from dllm_sweep.cli.results import print_leaderboard

    summary = run_pending(store, sweep, options)
    click.echo(f"\n{summary.sentence}\n", err=_is_json(options))
    if not _is_json(options):
        print_leaderboard(store, sweep=sweep, protocol_keys=protocol_keys)
    if summary.interrupted:
        context.exit(INTERRUPTED)
    context.exit(1 if summary.failed else 0)


def _is_json(options: Mapping[str, Any]) -> bool:
    """Whether standard output is for JSON lines alone, so that text goes to standard error."""
    return str(options["log_format"]) == "json"
