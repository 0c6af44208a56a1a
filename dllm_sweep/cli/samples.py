"""`samples`: a trial's answers beside those of full precision."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option
from dllm_sweep.cli.upkeep import files_option


@click.command("samples")
@click.argument("trial")
@click.argument("task")
@click.option("--doc", type=int, metavar="N", help="Only the item of this number, in full.")
@click.option("--changed", is_flag=True, help="Only items that full precision answered otherwise.")
@click.option("--wrong", is_flag=True, help="Only items that the trial has not got right.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many items.")
@click.option("--sweep", help="The sweep, if several have the trial.")
@files_option
@store_option
@format_option()
def samples_command(
    trial: str,
    task: str,
    doc: int | None,
    changed: bool,
    wrong: bool,
    limit: int | None,
    sweep: str | None,
    files: str | None,
    store: str | None,
    form: str,
) -> None:
    """Print what TRIAL answered to the items of TASK, beside full precision.

    Full precision is the trial of the same model, protocol and seed. An item is lost or gained if
    its score changed, or has another answer with the same score. JSON and CSV have whole texts,
    digests and what each item took.
    """
    from dllm_sweep.answers import Places, baseline_answers, read_answers, task_of
    from dllm_sweep.errors import InputError
    from dllm_sweep.reports.samples import pair_up, render_one, render_samples, summary

    with existing_store(store) as opened:
        detail = opened.trial_detail(trial, sweep)
        places, name = Places.of(opened, store, files), task_of(detail, task)
        own = read_answers(detail, name, places)
        full, why = baseline_answers(opened, detail, name, places)
    pairs = pair_up(own, full)
    chosen = [
        pair
        for pair in pairs
        if doc in (None, pair.own.doc_id)
        and (pair.change or not changed)
        and (pair.is_wrong or not wrong)
    ][:limit]
    if doc is not None and not chosen:
        raise InputError(f"task {name!r} has no such item {doc}")
    if doc is not None and form == "table":
        click.echo("\n".join(map(render_one, chosen)), nl=False)
        return
    click.echo(render_samples(chosen, form, name), nl=False)
    if form == "table":
        click.echo(f"\n{summary(pairs)}{why and f'; full precision: {why}'}")
