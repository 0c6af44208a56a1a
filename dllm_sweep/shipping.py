"""Code and files that go along to machines which have neither: nothing but plain nodes is assumed.

A path in a trial names a file of the machine where the sweep was planned. Its content travels with
the unit; `local` tells where the copy lies on this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dllm_sweep
from dllm_sweep.errors import InputError
from dllm_sweep.spec import TrialSpec

PACKAGE = "dllm_sweep"
_BESIDE = ("db", "kernels", "workers")
"""Folders that a checkout keeps beside the package and a wheel inside of it."""
_LARGEST_BYTES = 64 * 2**20
_copies: dict[str, Path] = {}


@dataclass(frozen=True, kw_only=True)
class ShippedFile:
    """A file of the machine where the sweep was planned."""

    path: str
    content: bytes

    @property
    def sha256(self) -> str:
        """The content's digest."""
        return hashlib.sha256(self.content).hexdigest()


def local(path: str | Path) -> Path:
    """Where a file that a trial names lies on this machine: its copy if one came along."""
    return _copies.get(str(path), Path(path))


def paths_of(trial: TrialSpec) -> tuple[str, ...]:
    """The files that a trial names by path: methods, tasks and texts of the user's own."""
    return tuple(sorted(set(_paths_of(trial))))


def unpack(shipped: Iterable[ShippedFile]) -> None:
    """Write the files that came along to a folder of this machine, where `local` finds them."""
    for file in shipped:
        if file.path not in _copies or _copies[file.path].parent.name != file.sha256:
            _copies[file.path] = _keep(file)


def stage(folder: Path) -> Path:
    """Copy the package's files to `folder` as a wheel would hold them; returns its place there."""
    package = _package()
    target = folder / PACKAGE
    leave_out = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(package, target, ignore=leave_out)
    for name in _BESIDE:
        if not (target / name).exists():
            shutil.copytree(package.parent / name, target / name, ignore=leave_out)
    return target


def digest() -> str:
    """A digest of the package's code, equal on two machines that would do the same."""
    found = hashlib.sha256()
    for name, path in sorted(_code()):
        found.update(f"{name}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _package() -> Path:
    return Path(str(dllm_sweep.__file__)).parent


def _code() -> Iterator[tuple[str, Path]]:
    package = _package()
    inside = [package / name for name in _BESIDE if (package / name).is_dir()]
    beside = [] if inside else [package.parent / name for name in _BESIDE]
    for root, base in ((package, package), *((folder, package.parent) for folder in beside)):
        for path in root.rglob("*.py"):
            yield path.relative_to(base).as_posix(), path


def _paths_of(trial: TrialSpec) -> Iterator[str]:
    """Paths as the trial has them; names of the package, and of the hub, are no files."""
    if ".py:" in trial.method:
        yield trial.method.rpartition(":")[0]
    yield from (task.name for task in trial.protocol.tasks if task.name.endswith(".yaml"))
    texts = [trial.calibration]
    if trial.protocol.outliers is not None:
        texts.append(trial.protocol.outliers.text)
    yield from (text.source for text in texts if text is not None and local(text.source).is_file())


def read(path: str) -> ShippedFile:
    """Read a file that a trial names, so that it can travel.

    Raises:
        InputError: If it is too large for that, or is not there any more.
    """
    place = local(path)
    if not place.is_file():
        raise InputError(f"{path}: there is no such file (any more), and a trial names it")
    if place.stat().st_size > _LARGEST_BYTES:
        raise InputError(
            f"{path}: more than {_LARGEST_BYTES // 2**20} MiB do not travel with each trial: put"
            " the file where all machines find it, or on a hub"
        )
    return ShippedFile(path=path, content=place.read_bytes())


def _keep(file: ShippedFile) -> Path:
    """Write a copy under its digest; several processes of a machine may do so at once."""
    folder = Path(tempfile.gettempdir()) / f"dllm-sweep-{os.getuid()}" / file.sha256
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    target = folder / Path(file.path).name
    if not target.is_file() or target.read_bytes() != file.content:
        part = folder / f".{os.getpid()}.part"
        part.write_bytes(file.content)
        part.replace(target)
    return target
