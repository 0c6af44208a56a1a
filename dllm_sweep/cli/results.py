"""`leaderboard` and `sql`: reading results."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Collection

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option


@click.command("leaderboard")
@click.option("--sweep", help="Only this sweep; all of the store if left out.")
@click.option("--all", "everything", is_flag=True, help="Every trial, however many there are.")
@click.option("--sql", is_flag=True, help="Print the SQL behind it instead.")
@store_option
@format_option("markdown")
def leaderboard_command(
    sweep: str | None, everything: bool, sql: bool, store: str | None, form: str
) -> None:
    """Print each trial's scores, its loss to full precision, its class and its bits.

    Trials compare only within one protocol (tasks, limits, decoding, precision): each protocol
    has a table of its own. Of a model with many trials it shows the best; the other formats always
    have all.
    """
    from dllm_sweep.reports.leaderboard import BOARD_SQL, SCORES_SQL

    if sql:
        click.echo(f"{BOARD_SQL};\n\n{SCORES_SQL};")
        return
    print_leaderboard(store, sweep=sweep, form=form, everything=everything)


def print_leaderboard(
    store: str | None,
    *,
    sweep: str | None,
    protocol_keys: Collection[str] | None = None,
    form: str = "table",
    everything: bool = False,
) -> None:
    """Print the boards of a store; a table fits the terminal if it goes to one."""
    from dllm_sweep.reports.leaderboard import SHOWN, boards, render

    best = None if everything or form != "table" else SHOWN
    with existing_store(store) as opened:
        name = None if sweep is None else opened.sweep(sweep).name
        found = boards(opened, name, protocol_keys, best=best)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    click.echo(render(found, form, width), nl=False)


@click.command("sql")
@click.argument("query")
@store_option
@format_option()
def sql_command(query: str, store: str | None, form: str) -> None:
    """Run QUERY, one SELECT, on the store; nothing can be changed.

    The views trials, results, leaderboard, outliers_top, failures, events and progress are the
    stable interface.
    """
    from dllm_sweep.reports.listing import Listing, show

    with existing_store(store) as opened:
        table = opened.query(query)
    show(Listing(table.columns, table.rows), form, empty="no rows")
