"""The files of a run as one machine reaches them: its own folder, a shared URL, other machines.

Every file is named by its content. Whatever is read is checked against its digest first; a file
that is cut or altered counts as absent.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from dllm_sweep.errors import DiskFull
from dllm_sweep.records import Artifact
from dllm_sweep.workers import files
from dllm_sweep.workers.messages import WorkerOptions

log = logging.getLogger(__name__)

_PUSHED_KINDS = frozenset({"samples"})
"""Kinds that people read: they end up on the controller's machine."""


class Peers(Protocol):
    """Other machines of the run, which have folders of their own."""

    def fetch(self, name: str, into: Path) -> bool:
        """Copy a file that some machine has to `into`; False if none has it."""

    def names(self, folder: str, prefix: str) -> tuple[str, ...]:
        """Names, relative to the root, of files in `folder` that begin with `prefix`."""

    def give_home(self, name: str, path: Path, sha256: str) -> None:
        """Copy a file to the controller's machine unless it has it.

        Raises:
            ConnectionError: If that machine cannot be reached.
        """

    def remove(self, name: str) -> None:
        """Remove a file from every machine that can be reached."""


class Depot:
    """Keeps and finds a run's files.

    Args:
        root: This machine's folder.
        remote: URL of the shared folder behind it; empty if there is none.
        peers: Other machines; None if there are none, or all share `root`.
    """

    def __init__(self, root: Path, *, remote: str = "", peers: Peers | None = None) -> None:
        self.root, self._peers = root, peers
        self._remote = Remote(remote) if remote else None

    def keep(
        self,
        path: Path,
        kind: str,
        *,
        sha256: str | None = None,
        name: str = "",
        durable: bool = True,
    ) -> Artifact:
        """Move a finished temporary file to its content address, here and in the shared folder.

        Args:
            path: The temporary file.
            kind: Its kind, and its folder's name.
            sha256: Its digest where its writer knows it.
            name: What its name starts with, before the digest.
            durable: Whether it must outlast a power cut of this machine.

        Raises:
            DiskFull: If there is no space left, or a folder may not be written.
            ConnectionError: If the shared folder or the controller's machine cannot be reached.
        """
        artifact = files.adopt(path, self.root, kind, sha256=sha256, name=name, durable=durable)
        if self._remote is not None:
            self._remote.put(self.root / artifact.path, artifact.path)
        elif self._peers is not None and kind in _PUSHED_KINDS:
            self._peers.give_home(artifact.path, self.root / artifact.path, artifact.sha256)
        return artifact

    @contextlib.contextmanager
    def borrow(self, artifact: Artifact) -> Iterator[Path | None]:
        """Give a path under which the whole file lies as long as the context lasts.

        A file of another machine is copied for that long only: quantized weights of one trial
        would otherwise pile up on every machine that once helped with it. None if the file is
        nowhere, or not whole.

        Raises:
            ConnectionError: If the shared folder cannot be reached.
        """
        if files.is_whole(artifact, self.root):
            yield self.root / artifact.path
            return
        if self._remote is None and self._peers is None:
            yield None
            return
        with files.new_file(self.root / "fetched", Path(artifact.path).suffix) as path:
            yield path if self._fetch(artifact, path) else None

    def find(self, folder: str, prefix: str, suffix: str) -> Path | None:
        """Find a whole file by what its name starts with, and leave a copy on this machine.

        Args:
            folder: Its folder, relative to the root.
            prefix: What stands before the dot and the digest in its name.
            suffix: What stands behind the digest.
        """
        for name in self.names(folder, f"{prefix}."):
            digest = name.removesuffix(suffix).rpartition(".")[2]
            wanted = Artifact(kind=folder, path=name, sha256=digest, bytes=0)
            with self.borrow(wanted) as path:
                if path is None:
                    continue
                if path != self.root / name:
                    files.adopt(path, self.root, folder, sha256=digest, name=prefix)
            return self.root / name
        return None

    def remove(self, name: str) -> None:
        """Remove a file, here, in the shared folder and on other machines; it may be gone."""
        (self.root / name).unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.remove(name)
        elif self._peers is not None:
            self._peers.remove(name)

    def names(self, folder: str, prefix: str) -> tuple[str, ...]:
        """Names, relative to the root, of files anywhere in `folder` that begin with `prefix`.

        Raises:
            ConnectionError: If the shared folder cannot be reached.
        """
        here = {f"{folder}/{path.name}" for path in (self.root / folder).glob(f"{prefix}*")}
        there = () if self._remote is None else self._remote.names(folder, prefix)
        others = () if self._peers is None else self._peers.names(folder, prefix)
        # What lies on this machine is nearest.
        return (*sorted(here), *sorted({*there, *others} - here))

    def _fetch(self, artifact: Artifact, into: Path) -> bool:
        source = self._remote if self._remote is not None else self._peers
        if source is None or not source.fetch(artifact.path, into):
            return False
        whole = files.sha256_of(into) == artifact.sha256
        if not whole:
            log.warning("%s is damaged where it was fetched from", artifact.path)
        return whole


class Remote:
    """A folder behind a URL that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self._url = url
        self._system: Any
        self._system, self._base = fsspec.core.url_to_fs(url)

    def put(self, path: Path, name: str) -> None:
        """Copy a file there, under a name of its own until it is whole.

        Raises:
            DiskFull: If there is no space left, or it may not be written.
            ConnectionError: If it cannot be reached.
        """
        target = f"{self._base}/{name}"
        partial = f"{target}.{uuid.uuid4().hex}.part"
        with self._reaching(), files.writing_into(self._url):
            self._system.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(path), partial)
            self._system.mv(partial, target)

    def fetch(self, name: str, into: Path) -> bool:
        """Copy a file from there to `into`; False if it is not there.

        Raises:
            ConnectionError: If it cannot be reached.
        """
        try:
            with self._reaching():
                self._system.get_file(f"{self._base}/{name}", str(into))
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str, prefix: str) -> tuple[str, ...]:
        """Names, relative to the root, of files in `folder` that begin with `prefix`."""
        with self._reaching():
            found = self._system.glob(f"{self._base}/{folder}/{prefix}*")
        names = (str(path).rpartition("/")[2] for path in found)
        return tuple(f"{folder}/{name}" for name in names if not name.endswith(".part"))

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        with contextlib.suppress(FileNotFoundError), self._reaching():
            self._system.rm_file(f"{self._base}/{name}")

    @contextlib.contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, DiskFull, ConnectionError):
            raise
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConnectionError(f"files at {self._url} cannot be reached: {text}") from error


def open_depot(options: WorkerOptions) -> Depot:
    """The depot of a worker."""
    if not options.peers:
        return Depot(options.files, remote=options.remote)
    from dllm_sweep.workers.transfer import RayPeers

    return Depot(options.files, remote=options.remote, peers=RayPeers(options.peers))
