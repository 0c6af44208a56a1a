"""`cancel` and `pause`: changing what a sweep does while it runs or waits."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, store_option


@click.command("cancel")
@click.argument("trials", nargs=-1)
@click.option("--sweep", help="The sweep; the one launched last if left out.")
@click.option("--all", "everything", is_flag=True, help="Cancel all trials of the sweep.")
@store_option
def cancel_command(
    trials: tuple[str, ...], sweep: str | None, everything: bool, store: str | None
) -> None:
    """Cancel trials that wait or run, by the beginning of their keys or all of them.

    A running unit stops at its next commit; its result is thrown away. `retry TRIAL` takes a
    cancelled trial up again.
    """
    if not trials and not everything:
        raise click.UsageError("name the trials (see `dllm-sweep status`), or say --all")
    with existing_store(store) as opened:
        row = opened.sweep(sweep)
        count = opened.cancel(row.id, keys=trials)
    click.echo(f"{count} trials of {row.name!r} cancelled")


@click.command("pause")
@click.argument("sweep", required=False)
@click.option("--off", is_flag=True, help="Hand out trials again.")
@store_option
def pause_command(sweep: str | None, off: bool, store: str | None) -> None:
    """Stop handing out trials of SWEEP (the one launched last); running ones finish."""
    with existing_store(store) as opened:
        row = opened.sweep(sweep)
        opened.pause(row.id, not off)
    click.echo(f"sweep {row.name!r} {'goes on' if off else 'is paused; --off lets it go on'}")
