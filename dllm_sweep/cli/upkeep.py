"""`gc` and `fsck`: keeping a store and its files clean."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from dllm_sweep.cli.options import existing_store, format_option, store_option

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.upkeep.folders import Folder

_UNITS_S = {"h": 3600.0, "d": 86400.0, "w": 604800.0}

files_option = click.option(
    "--files",
    metavar="DIR|URL",
    help="Where the files are, if not beside the store or where the sweep files say.",
)


def _seconds(context: click.Context, param: click.Parameter, value: str) -> float | None:
    """Read an age such as `12h`, `30d` or `2w`; `never` is None."""
    if value == "never":
        return None
    match = re.fullmatch(r"(\d+)([hdw])", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no age: write 12h, 30d, 2w or never")
    return int(match[1]) * _UNITS_S[match[2]]


def _age(option: str, default: str, about: str) -> Any:
    return click.option(
        option, default=default, show_default=True, metavar="AGE", callback=_seconds, help=about
    )


def is_shared(store: SqlStore) -> bool:
    """Whether other stores may keep files in the same folder: that of a server is not named
    after its database."""
    return not store.url.startswith("sqlite")


def _folders(store: SqlStore, address: str | None, files: str | None) -> tuple[Folder, ...]:
    from dllm_sweep.stored import resolve_store
    from dllm_sweep.upkeep.folders import folders_of

    sources = [row[0] for row in store.query("SELECT source FROM sweep ORDER BY id").rows]
    return folders_of(files, resolve_store(address), sources)


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@_age("--logs-older-than", "30d", "Logs of trials that succeeded so long ago.")
@_age("--weights-older-than", "7d", "Quantized weights of trials that failed so long ago.")
@_age("--samples-older-than", "never", "Answers to items of trials that ended so long ago.")
@_age("--stages-older-than", "30d", "Shared work, such as calibrations, made so long ago.")
@click.option(
    "--orphans/--no-orphans",
    default=None,
    help="Files that no row names. By default those of a SQLite store alone: other stores may"
    " share the folder of a server's.",
)
@click.option("--each", is_flag=True, help="One row a file instead of a sum for each kind.")
@files_option
@store_option
@format_option()
def gc_command(
    dry_run: bool,
    orphans: bool | None,
    each: bool,
    files: str | None,
    store: str | None,
    form: str,
    **ages: float | None,
) -> None:
    """Delete files and logs that nobody needs any more.

    These are files left over by crashes, weights of trials that ended, and old logs. What a trial
    that waits or runs needs, and whatever is younger than an hour, is never touched; neither are
    results. An AGE is a number with h, d or w, or never.
    """
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.upkeep import kept_note, waste_by_kind, waste_listing
    from dllm_sweep.upkeep import cleaning

    limits = cleaning.Ages(
        logs=ages["logs_older_than"],
        weights=ages["weights_older_than"],
        samples=ages["samples_older_than"],
        stages=ages["stages_older_than"],
    )
    with existing_store(store) as opened:
        folders = _folders(opened, store, files)
        facts = cleaning.Facts.read(opened)
        found = cleaning.examine(
            facts,
            [file for folder in folders for file in folder.files()],
            limits,
            orphans=not is_shared(opened) if orphans is None else orphans,
        )
        if not dry_run:
            found = cleaning.remove(opened, found, folders)
    show(waste_listing(found) if each else waste_by_kind(found), form, empty="nothing to delete")
    if form == "table":
        click.echo(kept_note(found, dry_run=dry_run), nl=False)


@click.command("fsck")
@click.option("--deep", is_flag=True, help="Read every file and compare its SHA-256, too.")
@click.option(
    "--orphans/--no-orphans",
    default=None,
    help="Whether files that no row names are problems; by default for SQLite stores alone.",
)
@files_option
@store_option
@format_option()
@click.pass_context
def fsck_command(
    context: click.Context,
    deep: bool,
    orphans: bool | None,
    files: str | None,
    store: str | None,
    form: str,
) -> None:
    """Check the store against itself and against its files; nothing is changed.

    Finds files that are missing, cut or altered (with --deep, byte by byte), files that no row
    names, trials that succeeded without all of their units, scores without their units, trials
    that run without a controller. Exits with 1 if there is a problem.
    """
    from dllm_sweep.reports.listing import show
    from dllm_sweep.reports.upkeep import problem_listing, report_note
    from dllm_sweep.upkeep.checking import check

    with existing_store(store) as opened:
        folders = _folders(opened, store, files)
        count_orphans = not is_shared(opened) if orphans is None else orphans
        report = check(opened, folders, deep=deep, orphans=count_orphans)
    show(problem_listing(report, full=form != "table"), form, empty="no problems")
    if form == "table":
        click.echo(report_note(report, deep=deep))
    context.exit(1 if report.problems else 0)
