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
@click.option(
    "--by",
    type=click.Choice(["task", "task-group"]),
    default="task",
    show_default=True,
    help="One column a task, or one row for each group of tasks: general, math, code.",
)
@click.option("--sql", is_flag=True, help="Print the SQL behind it instead.")
@store_option
@format_option("markdown")
def leaderboard_command(
    sweep: str | None, everything: bool, by: str, sql: bool, store: str | None, form: str
) -> None:
    """Print each trial's scores, its loss to full precision, its class and its bits.

    Trials compare only within one protocol (tasks, limits, decoding, precision): each protocol
    has a table of its own. Of a model with many trials it shows the best; the other formats always
    have all. A group's mean names the tasks that it is over, and is compared with full precision
    over the same tasks alone.
    """
    from dllm_sweep.reports.leaderboard import BOARD_SQL, SCORES_SQL
    from dllm_sweep.reports.task_groups import GROUPS_SQL, group_means, render_groups

    if sql:
        click.echo(f"{GROUPS_SQL if by == 'task-group' else BOARD_SQL};\n\n{SCORES_SQL};")
    elif by == "task-group":
        with existing_store(store) as opened:
            name = None if sweep is None else opened.sweep(sweep).name
            found = group_means(opened, name)
        click.echo(render_groups(found, form), nl=False)
    else:
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

    The views trials, results, leaderboard, group_scores, outliers_top, failures, events and
    progress are the stable interface.
    """
    from dllm_sweep.reports.listing import Listing, show

    with existing_store(store) as opened:
        table = opened.query(query)
    show(Listing(table.columns, table.rows), form, empty="no rows")
