"""Rows for people and for programs: an aligned table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "-"


@dataclass(frozen=True)
class Listing:
    """A table as every command prints it.

    Attributes:
        columns: Names of the columns.
        rows: Values as they are; how they are written is the format's affair.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def records(self) -> list[dict[str, object]]:
        """One mapping a row."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def show(listing: Listing, form: str, empty: str = "nothing to show") -> None:
    """Print a listing as `table`, `json` or `csv`; a table is drawn with rich on a terminal."""
    if form == "table" and not listing.rows:
        print(empty)
    elif form == "table" and sys.stdout.isatty():
        draw(listing)
    else:
        print({"table": plain, "json": as_json, "csv": as_csv}[form](listing), end="")


def draw(listing: Listing, title: str | None = None) -> None:
    """Draw a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(listing.columns):
        right = all(isinstance(row[index], int | float) for row in listing.rows)
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in listing.rows:
        table.add_row(*map(text_of, row))
    Console(highlight=False, markup=False).print(table)


def plain(listing: Listing) -> str:
    """Align the columns with blanks, one line a row."""
    cells = [listing.columns, *([text_of(value) for value in row] for row in listing.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "".join(f"{line}\n" for line in lines)


def as_json(listing: Listing) -> str:
    """A JSON list with one object a row; what is no finite number is written as text."""
    records = [{key: _json_value(value) for key, value in row.items()} for row in listing.records()]
    return json.dumps(records, indent=1, ensure_ascii=False) + "\n"


def as_csv(listing: Listing) -> str:
    """CSV with a header; a missing value is an empty field."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(listing.columns)
    writer.writerows(listing.rows)
    return out.getvalue()


def markdown(listing: Listing) -> str:
    """A Markdown table."""
    rows: Sequence[Sequence[str]] = [
        listing.columns,
        ["---"] * len(listing.columns),
        *([text_of(value).replace("|", "\\|") for value in row] for row in listing.rows),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def text_of(value: object) -> str:
    """Write one value for people, on one line."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())


def _json_value(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)
