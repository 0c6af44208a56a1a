"""What attempts printed: from their files if they are on this machine, else from the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep.errors import InputError
from dllm_sweep.records import LogChunk, TrialState
from dllm_sweep.workers.files import log_path

if TYPE_CHECKING:
    from dllm_sweep.db.reads import TrialDetail
    from dllm_sweep.db.store import SqlStore

POLL_S = 1.0


def log_text(
    detail: TrialDetail, attempt: int | None, root: Path, chunks: Iterable[LogChunk]
) -> str:
    """The log of an attempt, then the traceback if it failed.

    Args:
        detail: The trial.
        attempt: Number of the attempt; None is the last one.
        root: The folder for files beside the store.
        chunks: What the store has of the trial's logs.

    Raises:
        InputError: If the trial has no such attempt, or the attempt left no log.
    """
    number = _number(detail, attempt)
    failures = [row for row in detail.failures.dicts() if row["attempt"] == number]
    paths = _log_files(detail, number, root)
    texts = [(path.stem, path.read_text(encoding="utf-8", errors="replace")) for path in paths]
    log = _joined(texts) or "".join(headed(chunk for chunk in chunks if chunk.attempt == number))
    if not log and not failures:
        raise InputError(
            f"attempt {number} of {detail.trial['label']} left no log, neither in {root} nor in"
            " the store"
        )
    return "".join([log, *(_fault(row, log) for row in failures)])


def headed(chunks: Iterable[LogChunk]) -> Iterator[str]:
    """The text of chunks, with a line between those of different attempts or workers."""
    last: tuple[int, str] | None = None
    for chunk in chunks:
        source = chunk.attempt, chunk.worker
        if last is not None and source != last:
            yield f"\n==> attempt {chunk.attempt}, {chunk.worker} <==\n"
        last = source
        yield chunk.text


def follow(
    store: SqlStore,
    detail: TrialDetail,
    trial_id: int,
    attempt: int | None,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """The log as it grows, from the store, until the trial has ended.

    Args:
        store: The store.
        detail: The trial.
        trial_id: Its number.
        attempt: The only attempt to print; None is all of them.
        pause: Waits for some seconds.
    """
    yield from headed(
        chunk
        for chunk in _growing(store, detail, trial_id, pause)
        if attempt in (None, chunk.attempt)
    )


def _growing(
    store: SqlStore, detail: TrialDetail, trial_id: int, pause: Callable[[float], None]
) -> Iterator[LogChunk]:
    key = detail.trial["trial_key"], detail.trial["sweep"]
    seen = 0
    while True:
        # Asked before reading: whatever an ended trial has printed is in the store already.
        rows = store.query("SELECT state FROM trials WHERE trial_key = ? AND sweep = ?", key).rows
        for chunk in store.logs(trial_id, after=seen):
            seen = chunk.id
            yield chunk
        if rows[0][0] not in (TrialState.PENDING, TrialState.RUNNING):
            return
        pause(POLL_S)


def _number(detail: TrialDetail, attempt: int | None) -> int:
    numbers = [row["attempt"] for row in detail.attempts.dicts()]
    if not numbers:
        raise InputError(f"{detail.trial['label']} has not run yet: there is no log")
    number: int = numbers[-1] if attempt is None else attempt
    if number not in numbers:
        listed = ", ".join(map(str, numbers))
        raise InputError(f"{detail.trial['label']} has no attempt {number} (there are: {listed})")
    return number


def _log_files(detail: TrialDetail, attempt: int, root: Path) -> list[Path]:
    """The logs of an attempt's workers, oldest first: each has a file of its own."""
    usual = log_path(root, 0, detail.trial["trial_key"], attempt)
    key = usual.parent.name.removeprefix("0-")
    named = [row["log_path"] for row in detail.attempts.dicts() if row["attempt"] == attempt]
    found = {*(Path(name) for name in named if name)}
    for pattern in (usual.name, f"{usual.stem}.*{usual.suffix}"):
        found |= set(root.glob(f"logs/*-{key}/{pattern}"))
    here = {path.resolve() for path in found if path.is_file()}
    return sorted(here, key=lambda path: (path.stat().st_mtime, path.name))


def _joined(texts: list[tuple[str, str]]) -> str:
    if len(texts) < 2:
        return "".join(text for _, text in texts)
    return "".join(f"==> {name} <==\n{text}\n" for name, text in texts)


def _fault(failure: dict[str, Any], log: str) -> str:
    end = "" if not log or log.endswith("\n") else "\n"
    trace = "" if failure["traceback"] in log else failure["traceback"].rstrip() + "\n"
    return f"{end}{trace}{failure['unit']}: {failure['error_type']}: {failure['message']}\n"
