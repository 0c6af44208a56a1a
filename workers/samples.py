"""Answers to the items of a task, one Parquet file for each unit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet


def write(samples: Sequence[Any], path: Path) -> None:
    """Write one row per item.

    Args:
        samples: Frozen dataclasses of one type.
        path: The file, overwritten.
    """
    rows = [dataclasses.asdict(sample) for sample in samples]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, compression="zstd")
