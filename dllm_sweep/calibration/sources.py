"""Where calibration text comes from, without torch: planning names and fingerprints it.

A source is, in this order: a text set of the package (a file in `data/`), a local file or folder,
or a data set of the hub.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.errors import CalibrationError, suggestion
from dllm_sweep.shipping import local
from dllm_sweep.spec import CalibrationSpec

DATA = Path(__file__).parent / "data"

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CHUNK = 1 << 20
_CSV_FIELD_LIMIT = 1 << 30

Record = dict[str, Any]


def names() -> tuple[str, ...]:
    """Names of the text sets that the package ships."""
    return tuple(sorted(file.stem for file in DATA.glob("*.jsonl")))


def calibration_digest(spec: CalibrationSpec, revision: str | None = None) -> str:
    """Fingerprint the text: SHA-256 of local content, or `repository@commit` of the hub.

    Args:
        spec: The text.
        revision: Branch, tag or commit of a hub data set; a whole commit needs no network.

    Raises:
        CalibrationError: If there is no such text, or the hub cannot be reached.
    """
    local = local_path(spec.source)
    if local is None:
        return f"{spec.source}@{_hub_commit(spec.source, revision)}"
    digest = hashlib.sha256()
    for file in text_files(local):
        if local.is_dir():
            digest.update(f"{file.relative_to(local).as_posix()}\0".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def texts(spec: CalibrationSpec) -> Iterator[str]:
    """Give the documents of a source in their order, read as they are needed; empty ones not.

    Raises:
        CalibrationError: If the source cannot be read or has no column `text_field`.
    """
    return (text for (text,) in records(spec, ("text_field",)))


def records(spec: CalibrationSpec, options: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Give texts that stand in several columns, in their order, read as they are needed.

    Args:
        spec: The source.
        options: Fields of the spec that name the columns, such as `prompt_field`.

    Yields:
        One text for each column; records in which one is empty are left out.

    Raises:
        CalibrationError: If the source cannot be read or has no such column.
    """
    path, columns = local_path(spec.source), [getattr(spec, option) for option in options]
    for record in _hub_records(spec) if path is None else _local_records(path, columns):
        found = tuple(_text_in(record, spec, option) for option in options)
        if all(text.strip() for text in found):
            yield found


def check_columns(spec: CalibrationSpec, options: Sequence[str]) -> None:
    """Look for columns in the first record of a local source; a hub's are seen when it is read.

    Raises:
        CalibrationError: If there is no such column, or the source cannot be read.
    """
    if local_path(spec.source) is not None:
        next(records(spec, options), None)


def local_path(source: str) -> Path | None:
    """Find a text set of the package or a local file or folder; None if it must be the hub's."""
    packaged = DATA / f"{source}.jsonl"
    if source in names():
        return packaged
    path = local(source).expanduser()
    if path.exists():
        return path
    if path.suffix in _READERS or source.startswith((".", "/", "~")):
        raise CalibrationError(
            f"calibration text {source!r}: there is no such file or folder"
            f"{suggestion(source, names())}"
        )
    return None


def text_files(path: Path) -> tuple[Path, ...]:
    """List the files of a source in a fixed order: itself, or all text files of a folder.

    Raises:
        CalibrationError: If none of them has a format that can be read.
    """
    candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = tuple(file for file in candidates if file.is_file() and file.suffix in _READERS)
    if not files:
        raise CalibrationError(
            f"calibration text {str(path)!r}: no file that can be read"
            f" (formats: {', '.join(sorted(_READERS))})"
        )
    return files


def _local_records(path: Path, columns: Sequence[str]) -> Iterator[Record]:
    for file in text_files(path):
        try:
            yield from _READERS[file.suffix](file, columns)
        except (OSError, ValueError, csv.Error) as error:
            raise CalibrationError(f"calibration text {file}: {_one_line(error)}") from error


def _json_lines(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    with file.open(encoding="utf-8") as opened:
        for number, line in enumerate(opened, start=1):
            if not line.strip():
                continue
            try:
                yield _record(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _json_list(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, list):
        raise ValueError("expected a list of records")
    yield from map(_record, content)


def _comma_separated(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    csv.field_size_limit(_CSV_FIELD_LIMIT)
    with file.open(encoding="utf-8", newline="") as opened:
        yield from csv.DictReader(opened)


def _parquet(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)
    present = set(columns) <= set(opened.schema_arrow.names)
    for batch in opened.iter_batches(columns=list(columns) if present else None):
        yield from batch.to_pylist()


def _plain_text(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    # A file is one document: there is nothing in it for a second column.
    yield dict.fromkeys(columns, file.read_text(encoding="utf-8")) if len(columns) == 1 else {}


def _record(value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"expected a record with named columns, not {type(value).__name__}")
    return value


_READERS: dict[str, Callable[[Path, Sequence[str]], Iterable[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _comma_separated,
    ".parquet": _parquet,
    ".txt": _plain_text,
}


def _hub_commit(source: str, revision: str | None) -> str:
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(source, revision=revision).sha)
    except Exception as error:
        raise CalibrationError(_not_on_hub(source, error)) from error


def _hub_records(spec: CalibrationSpec) -> Iterator[Record]:
    from datasets import load_dataset

    commit = spec.digest.rpartition("@")[2] if spec.digest else None
    try:
        yield from load_dataset(
            spec.source, spec.subset, split=spec.split, revision=commit, streaming=True
        )
    except Exception as error:
        raise CalibrationError(_not_on_hub(spec.source, error)) from error


def _not_on_hub(source: str, error: Exception) -> str:
    return (
        f"calibration text {source!r} is no text set of the package ({', '.join(names())}), no"
        f" local file or folder, and the hub gave: {type(error).__name__}: {_one_line(error)}"
    )


def _text_in(record: Record, spec: CalibrationSpec, option: str) -> str:
    text = record.get(getattr(spec, option))
    if not isinstance(text, str):
        raise CalibrationError(_no_text(spec, option, record))
    return text


def _no_text(spec: CalibrationSpec, option: str, record: Record) -> str:
    column = getattr(spec, option)
    if column in record:
        found = type(record[column]).__name__
        return f"calibration text {spec.source!r}: column {column!r} holds {found}, not text"
    columns = ", ".join(map(str, record)) or "none"
    return (
        f"calibration text {spec.source!r} has no column {column!r}; set {option} to"
        f" one of its columns: {columns}"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
