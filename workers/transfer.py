"""Files from machine to machine through Ray, for clusters whose machines share no folder."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import Any

import ray

from dllm_sweep.workers import files

log = logging.getLogger(__name__)

_PIECE_BYTES = 16 * 2**20
"""Ray's object store may be as small as 80 MB."""
_HOME = "home"


class FileShelf:
    """Hands out the files under one machine's folder, and takes new ones in.

    Args:
        root: The folder on the controller's machine; nothing outside this machine's is touched.
        home: Whether this is that machine.
    """

    def __init__(self, root: Path, *, home: bool = False) -> None:
        self._root = (root if home else files.usable(root)).resolve()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if it is not here."""
        path = self._path(name)
        return path.stat().st_size if path.is_file() else None

    def names(self, folder: str, prefix: str) -> tuple[str, ...]:
        """Names, relative to the root, of files in `folder` that begin with `prefix`."""
        return tuple(f"{folder}/{path.name}" for path in self._path(folder).glob(f"{prefix}*"))

    def read(self, name: str, offset: int) -> bytes:
        """Read the piece of a file that begins at byte `offset`."""
        with self._path(name).open("rb") as file:
            file.seek(offset)
            return file.read(_PIECE_BYTES)

    def write(self, name: str, offset: int, piece: bytes) -> None:
        """Write a piece of a new file, which `finish` gives its own name.

        Raises:
            DiskFull: If there is no space left, or the folder may not be written.
        """
        path = self._path(name)
        with files.writing_into(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(piece)

    def finish(self, part: str, name: str, sha256: str) -> bool:
        """Give a new file its name if its digest is right, else remove it."""
        path, target = self._path(part), self._path(name)
        if files.sha256_of(path) != sha256:
            path.unlink()
            return False
        with path.open("rb") as file:
            os.fsync(file.fileno())
        path.replace(target)
        files.sync_folder(target.parent)
        return True

    def remove(self, name: str) -> None:
        """Remove a file; it may be gone already."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise ValueError(f"{name!r} is not a file of this folder")
        return path


class RayPeers:
    """The shelves of a run's machines.

    Args:
        peers: The name that they were served under.
    """

    def __init__(self, peers: str) -> None:
        self._peers = peers

    def fetch(self, name: str, into: Path) -> bool:
        """Copy a file that some machine has to `into`; False if none has it."""
        return any(self._copied(shelf, name, into) for shelf in self._shelves())

    def names(self, folder: str, prefix: str) -> tuple[str, ...]:
        """Names, relative to the root, of files in `folder` that begin with `prefix`."""
        found: set[str] = set()
        for shelf in self._shelves():
            try:
                found |= set(ray.get(shelf.names.remote(folder, prefix)))
            except ray.exceptions.RayError as error:
                log.info("a machine of the run is gone: %s", type(error).__name__)
        return tuple(sorted(found))

    def give_home(self, name: str, path: Path, sha256: str) -> None:
        """Copy a file to the controller's machine unless it has it.

        Raises:
            ConnectionError: If that machine cannot be reached.
            DiskFull: If it has no space left.
        """
        try:
            home = ray.get_actor(f"{self._peers}:{_HOME}")
            if ray.get(home.size.remote(name)) == path.stat().st_size:
                return
            part = f"{name}.{uuid.uuid4().hex}.part"
            with path.open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    ray.get(home.write.remote(part, file.tell() - len(piece), piece))
            whole = ray.get(home.finish.remote(part, name, sha256))
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except (ray.exceptions.RayError, ValueError) as error:
            text = f"the controller's machine does not take {name}: {type(error).__name__}"
            raise ConnectionError(text) from error
        if not whole:
            raise ConnectionError(f"{name} was damaged on its way to the controller's machine")

    def remove(self, name: str) -> None:
        """Remove a file from every machine that can be reached."""
        for shelf in self._shelves():
            shelf.remove.remote(name)

    def _shelves(self) -> list[Any]:
        names = [name for name in ray.util.list_named_actors() if name.startswith(self._prefix)]
        found = []
        for name in names:
            try:
                found.append(ray.get_actor(name))
            except ValueError:
                continue  # its machine has just gone
        return found

    @property
    def _prefix(self) -> str:
        return f"{self._peers}:"

    def _copied(self, shelf: Any, name: str, into: Path) -> bool:
        try:
            size = ray.get(shelf.size.remote(name))
            if size is None:
                return False
            with into.open("wb") as file:
                while file.tell() < size:
                    piece = ray.get(shelf.read.remote(name, file.tell()))
                    if not piece:
                        return False
                    file.write(piece)
        except ray.exceptions.RayError as error:
            log.info("%s was not fetched: %s", name, type(error).__name__)
            return False
        return True


def serve(peers: str, node_id: str, folder: Path, *, home: bool = False) -> Any:
    """Start the shelf of one machine; it lives as long as its handle.

    Args:
        peers: The run's name; workers find the shelves by it.
        node_id: Ray's id of the machine.
        folder: The folder for files on the controller's machine.
        home: Whether it is the controller's machine, where answers to items end up.
    """
    on_node = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
    return (
        ray.remote(FileShelf)
        .options(
            name=f"{peers}:{_HOME if home else node_id}",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=3,
            scheduling_strategy=on_node,
        )
        .remote(folder, home=home)
    )
