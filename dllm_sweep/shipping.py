"""Code and files that go along to machines which have neither: nothing but plain nodes is assumed.

A path in a trial names a file of the machine where the sweep was planned. Its content travels with
the unit; `local` tells where the copy lies on this machine.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dllm_sweep
from dllm_sweep.errors import InputError
from dllm_sweep.spec import TaskSpec, TrialSpec

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


def local_folder(path: str | Path) -> Path:
    """Where a folder that a trial names lies on this machine: the copy of what came along of it."""
    inside = f"{path}".rstrip("/") + "/"
    for named, copy in reversed(_copies.items()):
        if named.startswith(inside):
            return copy.parents[named[len(inside) :].count("/")]
    return Path(path)


def paths_of(trial: TrialSpec) -> tuple[str, ...]:
    """The files that a trial names by path: methods, tasks and texts of the user's own."""
    return tuple(sorted(set(_paths_of(trial))))


def unpack(shipped: Sequence[ShippedFile]) -> None:
    """Write the files that came along to a folder of this machine, where `local` finds them.

    They keep their places to each other: a task names its data beside it.
    """
    if not shipped:
        return
    folder = _bundle_folder(shipped)
    if not folder.is_dir():
        _write(shipped, folder)
    for file in shipped:
        _copies.pop(file.path, None)
        # The newest come last: `local_folder` asks them first.
        _copies[file.path] = _place(folder, file.path)


def read(path: str) -> ShippedFile:
    """Read a file that a trial names so that it can travel.

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
    for task in trial.protocol.tasks:
        if task.name.endswith(".yaml"):
            yield from _with_data(task.name)
        if task.data is not None:
            yield from _local_data(task)
    texts = [trial.calibration]
    if trial.protocol.outliers is not None:
        texts.append(trial.protocol.outliers.text)
    yield from (text.source for text in texts if text is not None and local(text.source).is_file())


def _with_data(task: str) -> Iterator[str]:
    """A task's file and those that it names, by their paths on the machine of the planning."""
    from dllm_sweep.evaluation.tasks import task_files

    yield task
    here = local(task)
    for path in task_files(here) if here.is_file() else ():
        yield os.path.normpath(Path(task).parent / os.path.relpath(path, here.parent))


def _local_data(task: TaskSpec) -> Iterator[str]:
    """The files of a task's local data that it uses, by their paths where the sweep was planned."""
    from dllm_sweep.evaluation.tasks import data_files

    yield from map(str, data_files(task))


def _bundle_folder(shipped: Sequence[ShippedFile]) -> Path:
    listed = "\n".join(f"{file.sha256} {file.path}" for file in shipped)
    name = hashlib.sha256(listed.encode()).hexdigest()
    return Path(tempfile.gettempdir()) / f"dllm-sweep-{os.getuid()}" / name


def _place(folder: Path, path: str) -> Path:
    return folder / path.lstrip("/")


def _write(shipped: Sequence[ShippedFile], folder: Path) -> None:
    """Make the folder whole before it gets its name: several processes of a machine may do so."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = Path(tempfile.mkdtemp(dir=folder.parent))
    for file in shipped:
        target = _place(part, file.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)
    try:
        part.rename(folder)
    except OSError:
        shutil.rmtree(part)  # another process was faster
