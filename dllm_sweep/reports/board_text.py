"""A board as aligned text that fits its terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dllm_sweep.reports.leaderboard import (
    Board,
    Entry,
    class_text,
    number_text,
    score_text,
    without_zero,
)
from dllm_sweep.reports.told_apart import axis_texts, differing_axes
from dllm_sweep.spec import FULL_PRECISION


def board_text(board: Board, width: int | None) -> str:
    """Lay a board out: a headline for each model, aligned columns, the class last.

    Args:
        board: The trials.
        width: Columns to fit into; narrow ones get shorter numbers. None is no limit.
    """
    lines = _lay_out(board, compact=False)
    if width is not None and _too_wide(lines, width):
        lines = _lay_out(board, compact=True)
    return "".join(f"{_cut(line, width)}\n" for line in lines)


def _lay_out(board: Board, *, compact: bool) -> list[str]:
    trials = [entry.row for entry in board.entries]
    axes = differing_axes(trials)
    header = [
        "method",
        "scheme",
        *axes,
        *map(_short, board.tasks),
        "mean",
        "delta",
        "bits",
        "class",
    ]
    told = axis_texts(trials, axes)
    rows = [
        _cells(board, entry, texts, compact=compact)
        for entry, texts in zip(board.entries, told, strict=True)
    ]
    first_number = 2 + len(axes)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    gap = " " if compact else "  "
    texts = [_align(row, widths, first_number, gap) for row in (header, *rows)]
    lines = [texts[0]]
    paired = zip(board.entries, texts[1:], strict=True)
    named = Counter(map(_short, {row["model"] for row in trials}))
    for model, group in groupby(paired, key=lambda pair: pair[0].row["model"]):
        headline = _short(model) if named[_short(model)] == 1 else model
        lines += [headline, *(text for _, text in group)]
    return lines


def _cells(board: Board, entry: Entry, axes: Sequence[str], *, compact: bool) -> list[str]:
    """The cells of one trial; `axes` are the texts of what tells it from others."""
    row = entry.row
    shorten = without_zero if compact else str
    full = str(row["scheme"]) == str(FULL_PRECISION)
    scheme = "-" if full else str(row["scheme"]).replace("-asym", "")
    return [
        _short(row["method"]),
        scheme,
        *axes,
        *(score_text(entry.scores.get(task), compact=compact) for task in board.tasks),
        shorten(number_text(row["score_mean"])),
        shorten(number_text(None if entry.is_baseline else row["delta"], sign=True)),
        number_text(row["average_bits"], digits=2),
        class_text(entry),
    ]


def _short(name: str) -> str:
    """What comes from a file of the user's own is shown without its folder."""
    return Path(name).name if Path(name).is_absolute() else name


def _align(row: Sequence[str], widths: Sequence[int], first_number: int, gap: str) -> str:
    last = len(row) - 1
    cells = [
        cell.rjust(width) if first_number <= index < last else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return gap.join(cells).rstrip()


def _too_wide(lines: Sequence[str], width: int) -> bool:
    """Whether the header does not fit; a long reason at the end of a line may be cut."""
    return len(lines[0]) + len("significant") - len("class") > width


def _cut(line: str, width: int | None) -> str:
    return line if width is None or len(line) <= width else f"{line[: width - 1]}…"
