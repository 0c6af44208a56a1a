"""`show` and `logs`: one trial, one attempt."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option
from dllm_sweep.cli.pauses import heeding_ctrl_c


@click.command("show")
@click.argument("trial")
@click.option("--history", is_flag=True, help="What happened to it, when, by whom and why.")
@click.option("--sweep", help="The sweep, if several have the trial.")
@store_option
@format_option()
def show_command(
    trial: str, history: bool, sweep: str | None, store: str | None, form: str
) -> None:
    """Print everything about TRIAL, named by the beginning of its key."""
    from dllm_sweep.db.trial_history import trial_history
    from dllm_sweep.reports.history import render_history
    from dllm_sweep.reports.trials import render_detail

    with existing_store(store) as opened:
        detail = opened.trial_detail(trial, sweep)
        found = trial_history(opened, detail) if history else None
    if found is None:
        click.echo(render_detail(detail, form), nl=False)
        return
    click.echo(render_history(detail.trial["label"], found, form), nl=False)


@click.command("logs")
@click.argument("trial")
@click.option("--attempt", type=int, help="Number of the attempt; the last one if left out.")
@click.option("--follow", is_flag=True, help="Then print what comes, until the trial ends.")
@click.option("--sweep", help="The sweep, if several have the trial.")
@store_option
def logs_command(
    trial: str, attempt: int | None, follow: bool, sweep: str | None, store: str | None
) -> None:
    """Print the log of an attempt of TRIAL, and its traceback if it failed.

    The log's files are read where they are; from other machines, the copy in the store, of which
    the middle of a very long log is left out. --follow always reads the store.
    """
    from dllm_sweep.db.trial_history import trial_history
    from dllm_sweep.reports import logs
    from dllm_sweep.stored import resolve_store
    from dllm_sweep.sweep_file import stored_files
    from dllm_sweep.workers.files import roots

    with existing_store(store) as opened:
        detail = opened.trial_detail(trial, sweep)
        trial_id = trial_history(opened, detail).trial_id
        if follow:
            with heeding_ctrl_c() as pause:
                for text in logs.follow(opened, detail, trial_id, attempt, pause=pause):
                    click.echo(text, nl=False)
            return
        named = stored_files(opened.sweep(detail.trial["sweep"]).source)
        root, _ = roots(named, resolve_store(store))
        text = logs.log_text(detail, attempt, root, opened.logs(trial_id))
    click.echo(text, nl=False)
