"""`doctor`: what works here."""

from __future__ import annotations

import click

from dllm_sweep.cli.options import format_option, store_option


@click.command("doctor")
@store_option
@click.option("--address", metavar="ADDR", help="Look at this cluster, too, as a launch does.")
@format_option()
@click.pass_context
def doctor_command(
    context: click.Context, store: str | None, address: str | None, form: str
) -> None:
    """Look at Python, torch, GPU, Ray, store, disk and memory, and say what to do.

    Exits with 1 if something that a sweep needs is broken.
    """
    from dllm_sweep.doctor import examine
    from dllm_sweep.reports.listing import Listing, show

    findings = examine(store)
    if address is not None:
        from dllm_sweep import cluster_doctor

        findings += cluster_doctor.examine(address, store)
    rows = tuple((f.part, f.state, f.found, f.advice) for f in findings)
    show(Listing(("part", "state", "found", "what to do"), rows), form)
    context.exit(1 if any(f.state == "broken" for f in findings) else 0)
