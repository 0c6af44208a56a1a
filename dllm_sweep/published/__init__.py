"""Published results as data: the tables of arXiv 2508.14896 v3 and of its repository.

One CSV file beside this one for each table. Task rows hold the score in percent as printed.
Rows of a group's `mean` and of its `change_percent` (of the mean, relative to full precision,
negative is a loss) are printed values, too: where other scores of the table contradict one of
them, or it is over other tasks than it seems, `corrected` has what the printed scores give.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_FOLDER = Path(__file__).parent
MEAN, CHANGE = "mean", "change_percent"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One printed number.

    Attributes:
        model: The model by its name on the hub.
        method: Quantization method; `fp` is full precision.
        scheme: Bit-widths as this program writes them.
        task: The task by its lm-eval name; for `mean` and `change_percent`, the group of tasks.
        metric: The score's name, `mean` or `change_percent`.
        value: As printed, in percent.
        corrected: What it should be by the other printed scores; None if it is right.
        items: Items of the task's test set; None for means and changes.
        table: Where it is printed.
        tasks: What a printed mean is over; empty for tasks.
        note: What to know when comparing.
    """

    model: str
    method: str
    scheme: str
    task: str
    metric: str
    value: float
    corrected: float | None
    items: int | None
    table: str
    tasks: tuple[str, ...]
    note: str

    @property
    def is_task(self) -> bool:
        """Whether it is the score of one task."""
        return self.metric not in (MEAN, CHANGE)

    @property
    def stderr(self) -> float | None:
        """Sampling error in percent: binomial, by the number of items; None for means."""
        if self.items is None:
            return None
        return 100 * binomial_error(self.value / 100, self.items)


def cells() -> tuple[Cell, ...]:
    """All printed numbers, table by table."""
    return _read()


def names() -> tuple[str, ...]:
    """The published models."""
    return tuple(dict.fromkeys(cell.model for cell in cells()))


def binomial_error(share: float, items: int) -> float:
    """Standard error of a share of `items` that are right.

    At 0 and 1, where the sample says nothing of its spread, one item more of each kind is counted
    (Agresti and Caffo 2000).
    """
    if share in (0.0, 1.0):
        share, items = (share * items + 1) / (items + 2), items + 2
    return math.sqrt(share * (1 - share) / items)


@lru_cache
def _read() -> tuple[Cell, ...]:
    found: list[Cell] = []
    for path in sorted(_FOLDER.glob("*.csv"), key=lambda path: (path.stem == "repository", path)):
        with path.open(encoding="utf-8", newline="") as file:
            found += [_cell(row) for row in csv.DictReader(file)]
    return tuple(found)


def _cell(row: dict[str, str]) -> Cell:
    return Cell(
        model=row["model"],
        method=row["method"],
        scheme=row["scheme"],
        task=row["task"],
        metric=row["metric"],
        value=float(row["value"]),
        corrected=float(row["corrected"]) if row["corrected"] else None,
        items=int(row["items"]) if row["items"] else None,
        table=row["table"],
        tasks=tuple(row["tasks"].split()),
        note=row["note"],
    )
