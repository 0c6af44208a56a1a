"""`rescore`: scores of stored answers, computed anew without a GPU."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option
from dllm_sweep.cli.upkeep import files_option


@click.command("rescore")
@click.argument("target", metavar="SWEEP|TRIAL")
@click.option("--task", help="Only this task; all that are wholly evaluated if left out.")
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, resolve_path=True),
    metavar="DIR",
    help="Where the tasks' local data are, if not where they were when they were evaluated.",
)
@files_option
@store_option
@format_option()
@click.pass_context
def rescore_command(
    context: click.Context,
    target: str,
    task: str | None,
    data: str | None,
    files: str | None,
    store: str | None,
    form: str,
) -> None:
    """Score the stored answers of a sweep or of a trial anew, with the tasks as they are now.

    Generated text goes through the task's filters and metrics, programs through the sandbox,
    log-likelihoods through the choice of the answer; no model is loaded. Exits with 1 if a score
    or the score of an item differs. The store is left as it is.
    """
    from dllm_sweep.answers import Places
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.rescore import rescored_listing, rescored_note
    from dllm_sweep.rescoring import rescore, targets

    with existing_store(store) as opened:
        places = Places.of(opened, store, files)
        rows = [
            row
            for detail in targets(opened, target)
            for row in rescore(detail, places, task, data=data)
        ]
    show(rescored_listing(rows, full=form != "table"), form, empty="no evaluated tasks")
    if form == "table" and rows:
        click.echo(f"\n{rescored_note(rows)}")
    context.exit(1 if any(row.differs for row in rows) else 0)
