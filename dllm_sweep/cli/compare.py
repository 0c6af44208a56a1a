"""`compare`: own scores beside others."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option


@click.command("compare")
@click.argument("sweep", required=False)
@click.option(
    "--published", is_flag=True, help="Compare with the tables of arXiv 2508.14896 (needed)."
)
@click.option(
    "--as",
    "aliases",
    metavar="OWN=PUBLISHED",
    multiple=True,
    help="Compare a model with a published one of another name, as llada-tiny=LLaDA-8B-Base.",
)
@store_option
@format_option()
def compare_command(
    sweep: str | None, published: bool, aliases: tuple[str, ...], store: str | None, form: str
) -> None:
    """Set the scores of SWEEP, or of the whole store, beside published ones.

    Models go together by the last part of their name, trials by method and bits, tasks by their
    names. The interval of a difference counts both sampling errors. A group's mean is over the
    same tasks on both sides, listed in its row.
    """
    from dllm_sweep.beside_published import compare_with_published, read_aliases
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.published import comparison_listing, comparison_note

    if not published:
        raise click.UsageError("say with what to compare: --published")
    with existing_store(store) as opened:
        name = None if sweep is None else opened.sweep(sweep).name
        found = compare_with_published(opened, name, read_aliases(aliases))
    empty = "nothing here has a published counterpart (see --as)"
    show(comparison_listing(found, full=form != "table"), form, empty=empty)
    if form == "table" and found:
        click.echo(f"\n{comparison_note(found)}")
