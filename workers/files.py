"""Where the files beside a store lie: logs of attempts, quantized weights, answers to items."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dllm_sweep.records import Artifact

_KEY_DIGITS = 12


def root_for(store: str) -> Path:
    """The folder for files beside a store, given its URL.

    It stands beside a SQLite file, under the same name; for a database server it is
    `dllm-sweep-files` in the working folder.
    """
    _, found, path = store.partition("sqlite:///")
    if not found:
        return Path("dllm-sweep-files").resolve()
    return Path(path).resolve().with_name(f"{Path(path).stem}-files")


def log_path(root: Path, trial_id: int, trial_key: str, attempt: int) -> Path:
    """The log of one attempt."""
    return root / "logs" / f"{trial_id}-{trial_key[:_KEY_DIGITS]}" / f"attempt-{attempt}.log"


@contextlib.contextmanager
def new_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A temporary path in `folder` that is removed again unless it was moved away."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".new-", suffix=suffix)
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def adopt(path: Path, root: Path, kind: str, *, sha256: str | None = None) -> Artifact:
    """Move a finished temporary file to its content address under `root`.

    The file is on disk before the row that names it is written, so that a row never names a
    file that is not there; a crash between the two leaves a file that no row names.

    Args:
        path: The temporary file.
        root: The folder for files.
        kind: The artifact's kind, and its folder's name.
        sha256: The file's digest where its writer knows it: weights may be many gigabytes.
    """
    data_digest = sha256 or _sha256(path)
    target = root / kind / f"{data_digest}{path.suffix}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    size = path.stat().st_size
    path.replace(target)
    return Artifact(kind=kind, path=str(target.relative_to(root)), sha256=data_digest, bytes=size)


def is_whole(artifact: Artifact, root: Path) -> bool:
    """Whether the file of `artifact` is there with the content it had when it was written."""
    path = root / artifact.path
    return path.is_file() and _sha256(path) == artifact.sha256


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
