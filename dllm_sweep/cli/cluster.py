"""`cluster`: look at cluster files before money is spent."""

from __future__ import annotations

from pathlib import Path

import click

from dllm_sweep.cli.options import format_option

COLUMNS = ("file", "line", "check", "place", "problem", "fix")


@click.group("cluster")
def cluster_command() -> None:
    """Look at cluster files before money is spent."""


@cluster_command.command("check")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--ignore",
    multiple=True,
    metavar="CHECK",
    help="A check to leave out; can be given several times.",
)
@format_option()
@click.pass_context
def check_command(
    context: click.Context, files: tuple[Path, ...], ignore: tuple[str, ...], form: str
) -> None:
    """Check files for `ray up` and KubeRay manifests; nothing is asked of any cloud.

    Says what Ray itself would refuse, and what it lets pass but would cost dearly: trials on the
    head, open dashboards, versions that differ. Exits with 1 if anything is wrong.
    """
    from dllm_sweep import cluster_lints
    from dllm_sweep.reports.listing import Listing, show

    cluster_lints.known(ignore)
    checked = {file: cluster_lints.check(file) for file in files}
    findings = [f for one in checked.values() for f in one.findings if f.lint not in ignore]
    rows = tuple((f.file, f.line, f.lint, f.place, f.problem, f.fix) for f in findings)
    show(Listing(COLUMNS, rows), form, empty="nothing is wrong")
    for file, one in checked.items():
        for line in one.preparations:
            click.echo(f"{file}: before `ray up`, {line}", err=True)
    context.exit(1 if findings else 0)
