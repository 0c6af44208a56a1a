"""The folders with a store's files, local or behind a URL, as upkeep sees them."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from dllm_sweep.errors import StoreError

OURS = ("weights", "samples", "stages", "fetched", "logs")
"""Folders that the program writes; nothing else is ever looked at."""
_NEW = ".new-"
_PART = ".part"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PIECE_BYTES = 2**20
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Names under which file systems tell when a file was written."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file as it lies there.

    Attributes:
        folder: Where.
        path: Relative to the folder.
        bytes: Its size.
        age_s: Seconds since it was written; 0 if nobody can tell.
    """

    folder: Folder
    path: str
    bytes: int
    age_s: float

    @property
    def kind(self) -> str:
        """The first part of its path."""
        return self.path.partition("/")[0]

    @property
    def is_temporary(self) -> bool:
        """Whether its writer had not finished it."""
        name = self.path.rpartition("/")[2]
        return name.startswith(_NEW) or name.endswith(_PART) or self.kind == "fetched"

    @property
    def has_digest(self) -> bool:
        """Whether its name holds a digest, as that of everything the program keeps."""
        return _DIGEST.search(self.path.rpartition("/")[2]) is not None


class Folder(Protocol):
    """Files under one root."""

    @property
    def name(self) -> str:
        """Where it is, for people."""

    def exists(self) -> bool:
        """Whether it is there at all."""

    def files(self) -> Iterator[StoredFile]:
        """All files that the program may have written."""

    def sha256(self, path: str) -> str:
        """Digest of a file's content.

        Raises:
            StoreError: If it cannot be read.
        """

    def remove(self, path: str) -> None:
        """Delete a file; it may be gone already.

        Raises:
            StoreError: If it cannot be deleted.
        """


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    root: Path

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.root)

    def exists(self) -> bool:
        """Whether it is there at all."""
        return self.root.is_dir()

    def files(self) -> Iterator[StoredFile]:
        """All files that the program may have written; links are left alone."""
        now = time.time()
        for kind in OURS:
            for path in sorted((self.root / kind).rglob("*")):
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue  # finished or removed by a worker since it was listed
                if path.is_symlink() or not path.is_file():
                    continue
                yield StoredFile(
                    folder=self,
                    path=path.relative_to(self.root).as_posix(),
                    bytes=status.st_size,
                    age_s=max(0.0, now - status.st_mtime),
                )

    def sha256(self, path: str) -> str:
        """Digest of a file's content."""
        try:
            with (self.root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(f"{self.root / path}: cannot be read: {error.strerror}") from error

    def remove(self, path: str) -> None:
        """Delete a file, and the folder of an attempt's logs once it is empty."""
        target = self.root / path
        try:
            target.unlink(missing_ok=True)
            if path.startswith("logs/") and not any(target.parent.iterdir()):
                target.parent.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StoreError(f"{target}: cannot be deleted: {error.strerror}") from error


class RemoteFolder:
    """A folder behind a URL that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url
        self._system: Any
        self._system, base = fsspec.core.url_to_fs(url)
        self._base = base.rstrip("/")

    @property
    def name(self) -> str:
        """Its URL."""
        return self._url

    def exists(self) -> bool:
        """Whether it is there at all."""
        return bool(self._system.exists(self._base))

    def files(self) -> Iterator[StoredFile]:
        """All files that the program may have written."""
        for kind in OURS:
            folder = f"{self._base}/{kind}"
            found = self._system.find(folder, detail=True) if self._system.exists(folder) else {}
            for path, facts in sorted(found.items()):
                yield StoredFile(
                    folder=self,
                    path=str(path).removeprefix(f"{self._base}/"),
                    bytes=int(facts["size"]),
                    age_s=_age_s(facts),
                )

    def sha256(self, path: str) -> str:
        """Digest of a file's content."""
        digest = hashlib.sha256()
        with self._system.open(f"{self._base}/{path}", "rb") as file:
            while piece := file.read(_PIECE_BYTES):
                digest.update(piece)
        return digest.hexdigest()

    def remove(self, path: str) -> None:
        """Delete a file."""
        target = f"{self._base}/{path}"
        if self._system.exists(target):
            self._system.rm_file(target)


def folders_of(given: str | None, store: str, sources: Sequence[str]) -> tuple[Folder, ...]:
    """All folders with files of a store.

    Args:
        given: The only one, as the user named it; None asks the sweeps.
        store: The store's URL.
        sources: The texts of the store's sweep files, which may name folders under `files`.
    """
    from dllm_sweep.sweep_file import stored_files
    from dllm_sweep.workers.files import roots

    named = [given] if given is not None else [None, *map(stored_files, sources)]
    found: dict[str, Folder] = {}
    for name in named:
        local, remote = roots(name, store)
        found[str(local)] = LocalFolder(local)
        if remote:
            found[remote] = RemoteFolder(remote)
    return tuple(found.values())


def _age_s(facts: dict[str, Any]) -> float:
    written = next((facts[name] for name in _TIMES if facts.get(name) is not None), None)
    if isinstance(written, datetime):
        written = written.timestamp()
    return max(0.0, time.time() - written) if isinstance(written, int | float) else 0.0
