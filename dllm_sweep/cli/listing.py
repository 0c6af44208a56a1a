"""`list`: what a sweep file can name."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import format_option

KINDS = ("models", "methods", "schemes", "tasks", "calibrations", "maskings", "presets")


@click.command("list")
@click.argument("kind", type=click.Choice(KINDS))
@format_option()
def list_command(kind: str, form: str) -> None:
    """Say what a sweep file can name, or what a preset sets."""
    from dllm_sweep.reports.inventory import inventory
    from dllm_sweep.reports.listing import show

    listing, note = inventory(kind)
    show(listing, form)
    if form == "table":
        click.echo(f"\n{note}")
