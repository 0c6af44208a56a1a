"""`failures`: what went wrong in a sweep, fault by fault."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option


@click.command("failures")
@click.argument("sweep", required=False)
@click.option("--traceback", is_flag=True, help="Print the latest traceback of each fault, too.")
@store_option
@format_option()
def failures_command(sweep: str | None, traceback: bool, store: str | None, form: str) -> None:
    """Group the failures of SWEEP (the one launched last) by fault, each with what to do.

    Failures with the same class, error and place in the code are one fault. Faults that failed
    most trials for good come first.
    """
    from dllm_sweep.reports import failures
    from dllm_sweep.reports.listing import Listing, show

    with existing_store(store) as opened:
        name = opened.sweep(sweep).name
        groups = failures.read_groups(opened, name)
        traces = [failures.last_traceback(opened, name, g) if traceback else "" for g in groups]
    if form == "table":
        parts = (
            failures.text_of(group) + (f"\n{trace}\n" if trace else "")
            for group, trace in zip(groups, traces, strict=True)
        )
        click.echo("\n".join(parts) or f"sweep {name!r}: no failures", nl=not groups)
        return
    listing = failures.listing_of(groups)
    if traceback:
        rows = ((*row, trace) for row, trace in zip(listing.rows, traces, strict=True))
        listing = Listing((*listing.columns, "traceback"), tuple(rows))
    show(listing, form)
