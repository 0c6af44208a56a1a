"""What `gc` and `fsck` found, as listings and in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.reports.listing import Listing

if TYPE_CHECKING:
    from dllm_sweep.upkeep.checking import Report
    from dllm_sweep.upkeep.cleaning import Findings

_IN_STORE = "log in the store"


def waste_by_kind(found: Findings) -> Listing:
    """One row for each kind of file and reason, with their number and size."""
    sums: dict[tuple[str, str], tuple[int, int]] = {}
    for waste in found.waste:
        number, size = sums.get((waste.file.kind, waste.why), (0, 0))
        sums[waste.file.kind, waste.why] = (number + 1, size + waste.file.bytes)
    if found.log_rows:
        sums[_IN_STORE, "log of a trial that succeeded"] = (found.log_rows, found.log_bytes)
    rows = ((kind, why, number, size) for (kind, why), (number, size) in sorted(sums.items()))
    return Listing(("kind", "why", "files", "bytes"), tuple(rows))


def waste_listing(found: Findings) -> Listing:
    """One row for each file; the logs in the store are one row."""
    rows: list[tuple[object, ...]] = [
        (
            waste.file.kind,
            waste.why,
            f"{waste.file.folder.name}/{waste.file.path}",
            waste.file.bytes,
        )
        for waste in found.waste
    ]
    if found.log_rows:
        where = f"{found.log_rows} pieces of {len(found.log_trials)} trials"
        rows.append((_IN_STORE, "log of a trial that succeeded", where, found.log_bytes))
    return Listing(("kind", "why", "file", "bytes"), tuple(rows))


def kept_note(found: Findings, *, dry_run: bool) -> str:
    """How much it is in all, and what was left alone though it may be waste."""
    total = sum(waste.file.bytes for waste in found.waste) + found.log_bytes
    lines = []
    if total or found.waste:
        verb = "would be deleted" if dry_run else "deleted"
        lines.append(f"{size_text(total)} {verb}\n")
    if found.orphans_kept:
        lines.append(
            f"{found.orphans_kept} files that no row names were left alone: another store may keep"
            " its files there; --orphans deletes them\n"
        )
    return "".join(lines)


def problem_listing(report: Report, *, full: bool) -> Listing:
    """One row a problem; `full` gives whole keys."""
    columns = ("problem", "sweep", "key", "trial", "detail", "what to do")
    rows = (
        (
            problem.name,
            problem.sweep,
            problem.trial_key if full else problem.trial_key[:8],
            problem.trial,
            problem.detail,
            problem.advice,
        )
        for problem in report.problems
    )
    return Listing(columns, tuple(rows))


def report_note(report: Report, *, deep: bool) -> str:
    """What was looked at, and how."""
    how = "by content" if deep else "by size (--deep reads them)"
    other = f"; {report.elsewhere} are on other machines" if report.elsewhere else ""
    return f"{len(report.problems)} problems; {report.files} files checked {how}{other}"


def size_text(number: float) -> str:
    """Bytes for people: `512 B`, `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
