"""Where the files beside a store lie: logs of attempts, quantized weights, answers to items."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from dllm_sweep.errors import DiskFull, InputError
from dllm_sweep.records import Artifact

_KEY_DIGITS = 12
_UNWRITABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
)
"""What no repeating helps against: no space, a quota, a size limit, a read-only folder."""
_ERRNO_IN_TEXT = re.compile(r"(?:os error|Errno) (\d+)")


def root_for(store: str) -> Path:
    """The folder for files beside a store, given its URL.

    It stands beside a SQLite file, under the same name; for a database server it is
    `dllm-sweep-files` in the working folder.
    """
    _, found, path = store.partition("sqlite:///")
    if not found:
        return Path("dllm-sweep-files").resolve()
    return Path(path).resolve().with_name(f"{Path(path).stem}-files")


def roots(given: str | None, store: str) -> tuple[Path, str]:
    """Where files go: this machine's folder, and the URL of the shared one behind it, if any.

    Args:
        given: A folder, or a URL that fsspec knows, such as `s3://bucket/sweeps`; None is the
            folder beside the store.
        store: The store's URL.

    Raises:
        InputError: If the URL's kind needs a package that is not installed, or is unknown.
    """
    here = root_for(store)
    if given is None:
        return here, ""
    if given.startswith("file://"):
        given = given.removeprefix("file://")
    if "://" not in given:
        return Path(given).expanduser().resolve(), ""
    import fsspec

    try:
        fsspec.get_filesystem_class(given.partition("://")[0])
    except (ImportError, ValueError) as error:
        raise InputError(f"files {given!r} cannot be used: {error}") from error
    return here, given.rstrip("/")


def usable(root: Path) -> Path:
    """This machine's folder for files, where machines have folders of their own.

    Args:
        root: The folder on the controller's machine. Where it cannot be made or written, as under
            another user's home, a folder of the same run under the temporary files stands in.
    """
    with contextlib.suppress(OSError):
        root.mkdir(parents=True, exist_ok=True)
    if os.access(root, os.W_OK):
        return root
    mark = hashlib.sha256(str(root).encode()).hexdigest()[:_KEY_DIGITS]
    return Path(tempfile.gettempdir()) / f"dllm-sweep-{os.getuid()}" / f"files-{mark}"


def log_path(root: Path, trial_id: int, trial_key: str, attempt: int) -> Path:
    """The log of one attempt."""
    return root / "logs" / f"{trial_id}-{trial_key[:_KEY_DIGITS]}" / f"attempt-{attempt}.log"


@contextlib.contextmanager
def new_file(folder: Path, suffix: str) -> Iterator[Path]:
    """A temporary path in `folder` that is removed again unless it was moved away."""
    with writing_into(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Not mkstemp: what it makes is for its user alone, also when it has its final name.
        path = folder / f".new-{uuid.uuid4().hex}{suffix}"
        path.touch(exist_ok=False)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_into(folder: Path | str) -> Iterator[None]:
    """Give errors of writing a class and a text that say what to do.

    Raises:
        DiskFull: If `folder` has no space left, or may not be written.
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        # safetensors and pyarrow keep the number in their text alone.
        told = _ERRNO_IN_TEXT.search(str(error))
        number = getattr(error, "errno", None) or (int(told[1]) if told else None)
        if number not in _UNWRITABLE:
            raise
        raise DiskFull(
            f"{folder} cannot be written: {os.strerror(number)}; make room (`dllm-sweep gc`), or"
            " move the folder and name its new place with --files, then resume"
        ) from error


def adopt(
    path: Path,
    root: Path,
    kind: str,
    *,
    sha256: str | None = None,
    name: str = "",
    durable: bool = True,
) -> Artifact:
    """Move a finished temporary file to its content address under `root`.

    The file is on disk before the row that names it is written, so that a row never names a
    file that is not there; a crash between the two leaves a file that no row names.

    Args:
        path: The temporary file.
        root: The folder for files.
        kind: The artifact's kind, and its folder's name.
        sha256: The file's digest where its writer knows it: weights may be many gigabytes.
        name: What its name starts with, before a dot and the digest.
        durable: Whether it must outlast a power cut; waiting for the disk may take longer than
            everything else.

    Raises:
        DiskFull: If there is no space left, or the folder may not be written.
    """
    data_digest = sha256 or sha256_of(path)
    stem = f"{name}.{data_digest}" if name else data_digest
    target = root / kind / f"{stem}{path.suffix}"
    with writing_into(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    size = path.stat().st_size
    path.replace(target)
    if durable:
        sync_folder(target.parent)
    return Artifact(kind=kind, path=str(target.relative_to(root)), sha256=data_digest, bytes=size)


def is_whole(artifact: Artifact, root: Path) -> bool:
    """Whether the file of `artifact` is there with the content it had when it was written."""
    path = root / artifact.path
    return path.is_file() and sha256_of(path) == artifact.sha256


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` outlast a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
