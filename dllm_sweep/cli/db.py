"""`db`: the store's tables and copies of them."""

from __future__ import annotations

from pathlib import Path

import click

from dllm_sweep.cli.options import format_option, store_option
from dllm_sweep.errors import StoreError


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


@db_command.command("check")
@store_option
@format_option()
@click.pass_context
def check_command(context: click.Context, store: str | None, form: str) -> None:
    """Say whether the tables are those this program needs, and whether they are sound.

    Nothing is changed. Exits with 3 if something is wrong.
    """
    from dllm_sweep.db.health import check
    from dllm_sweep.reports.listing import Listing, show

    checks = check(store)
    rows = tuple((c.part, "ok" if c.sound else "broken", c.found) for c in checks)
    show(Listing(("part", "state", "found"), rows), form)
    context.exit(0 if all(c.sound for c in checks) else StoreError.exit_code)


@db_command.command("backup")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@store_option
def backup_command(file: Path, store: str | None) -> None:
    """Copy the store into the new FILE, also while sweeps run.

    A SQLite store becomes a SQLite file that is a store itself; a Postgres store becomes an
    archive for pg_restore.
    """
    from dllm_sweep.db.backup import backup

    size = backup(store, file)
    click.echo(f"{file}: {size / 2**20:.1f} MiB, all of the store at one moment")
