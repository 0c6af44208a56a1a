"""Answers to the items of a task, one Parquet file for each unit. Nothing heavy is imported."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import pyarrow
import pyarrow.parquet

from dllm_sweep import __version__
from dllm_sweep.errors import StoreError
from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.records import Claim
from dllm_sweep.spec import Unit

FORMAT = "2"
"""Raised when columns change their meaning; `1` had neither digests nor the text as written."""

SCHEMA = pyarrow.schema(
    [
        pyarrow.field("task", pyarrow.string(), nullable=False),
        pyarrow.field("doc_id", pyarrow.int64(), nullable=False),
        pyarrow.field("prompt", pyarrow.string(), nullable=False),
        pyarrow.field("prompt_sha256", pyarrow.string(), nullable=False),
        pyarrow.field("requests_sha256", pyarrow.string(), nullable=False),
        pyarrow.field("target", pyarrow.string(), nullable=False),
        pyarrow.field("output", pyarrow.string(), nullable=False),
        pyarrow.field("repeats", pyarrow.list_(pyarrow.string()), nullable=False),
        pyarrow.field("answer", pyarrow.string(), nullable=False),
        pyarrow.field("log_likelihoods", pyarrow.list_(pyarrow.float64()), nullable=False),
        pyarrow.field("score", pyarrow.float64()),
        pyarrow.field("scores", pyarrow.map_(pyarrow.string(), pyarrow.float64()), nullable=False),
        pyarrow.field("steps", pyarrow.int64(), nullable=False),
        pyarrow.field("forwards", pyarrow.int64(), nullable=False),
        pyarrow.field("token_forwards", pyarrow.int64(), nullable=False),
        pyarrow.field("truncated", pyarrow.int64(), nullable=False),
    ]
)
"""One row an item; the types never depend on what the columns hold."""

_TUPLES = ("repeats", "log_likelihoods", "scores")


def write(samples: Sequence[Sample], path: Path, about: Mapping[str, str]) -> None:
    """Write one row per item.

    Args:
        samples: The records of one unit.
        path: The file, overwritten.
        about: What they belong to; kept in the file's own metadata under `dllm-sweep`. The same
            samples and the same text give the same bytes.
    """
    note = json.dumps({"format": FORMAT, **about}, sort_keys=True)
    schema = SCHEMA.with_metadata({"dllm-sweep": note})
    rows = [dataclasses.asdict(sample) for sample in samples]
    table = pyarrow.Table.from_pylist(rows, schema=schema)
    pyarrow.parquet.write_table(table, path, compression="zstd")


def describe(claim: Claim, unit: Unit) -> dict[str, str]:
    """What a file of answers belongs to; nothing that differs between two attempts."""
    return {
        "trial_key": claim.trial_key,
        "trial": claim.label,
        "protocol_key": claim.trial.protocol.key,
        "task": unit.task,
        "unit": unit.key,
        "dllm-sweep": __version__,
        **{name: version(name) for name in ("lm-eval", "torch", "transformers")},
    }


def read(paths: Iterable[Path]) -> tuple[Sample, ...]:
    """Read the files of one task, in one piece or in shards, as one: by task and item.

    Raises:
        StoreError: If a file is no such file.
    """
    found = [sample for path in paths for sample in _read(path)]
    return tuple(sorted(found, key=lambda sample: (sample.task, sample.doc_id)))


def about(path: Path) -> dict[str, str]:
    """What a file's samples belong to: trial, unit, protocol, versions; empty in old files."""
    metadata = pyarrow.parquet.read_schema(path).metadata or {}
    told: dict[str, str] = json.loads(metadata.get(b"dllm-sweep", b"{}"))
    return told


def _read(path: Path) -> list[Sample]:
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [_sample(row) for row in rows]
    except (OSError, TypeError, pyarrow.ArrowException) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise StoreError(f"{path} cannot be read as answers of a task: {reason}") from error


def _sample(row: dict[str, object]) -> Sample:
    values = {**row, **{name: _tuple(row.get(name)) for name in _TUPLES}}
    if "output" not in row and not values["log_likelihoods"]:
        values["output"] = row["answer"]  # format 1 kept what the model wrote as its answer
    return Sample(**values)  # type: ignore[arg-type]


def _tuple(value: object) -> tuple[object, ...]:
    return tuple(value) if isinstance(value, list) else ()
