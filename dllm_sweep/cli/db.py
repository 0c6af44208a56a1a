"""`db`: the version of the store's tables."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import store_option


@click.group("db")
def db_command() -> None:
    """Look after the store's tables."""


@db_command.command("current")
@store_option
def current_command(store: str | None) -> None:
    """Print the version of the store's tables and the version this program needs."""
    from dllm_sweep.db.connect import current, head

    click.echo(f"store {current(store) or 'empty'}, program {head()}")


@db_command.command("upgrade")
@store_option
def upgrade_command(store: str | None) -> None:
    """Bring the store's tables to this program's version; nothing changes if it fails."""
    from dllm_sweep.db.connect import upgrade

    click.echo(f"the store's tables are of version {upgrade(store)}")
