"""The files that a task's scores depend on, and their digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.tasks.data import present, split_files
from dllm_sweep.evaluation.tasks.definition import (
    Definition,
    find,
    task_file,
    with_includes,
)
from dllm_sweep.shipping import local

_DATA_FILE = re.compile(r"[\w./-]+\.jsonl?\b")
_FUNCTION = re.compile(r"!function (\w+)\.")


def task_files(path: Path) -> tuple[Path, ...]:
    """List a task's YAML file with those it includes, and the data and the Python files beside
    them that they name; for a group, those of its members that lie beside it, too."""
    yamls = [path]
    definition = find(str(path))
    for member in definition.members if definition is not None else ():
        if path.parent in member.path.parents:
            yamls.append(member.path)
    read = {one for yaml in yamls for one in with_includes(yaml) if path.parent in one.parents}
    return tuple(sorted({file for one in read for file in _named_in(one)}))


def task_digest(name: str, data: str | None = None, shots: int | None = None) -> str:
    """Say what a task's scores depend on apart from the model.

    Args:
        name: The task.
        data: Folder with its data; None if they are its own or the hub's.
        shots: Examples in the prompt, which may need another file; None is the task's own number.

    Returns:
        SHA-256 over the task's YAML file, its data and the Python files that it names; for a task
        of lm-eval's own, lm-eval's version. With local data, SHA-256 over all of these and over
        the content of the files used, wherever they lie; a task with rows of its own uses none.

    Raises:
        InputError: If local data are asked for and missing.
    """
    path = task_file(name)
    own = _harness() if path is None else _digest_of(path)
    if data is None:
        return own
    definition = find(name, anywhere=True)
    if definition is None:
        raise InputError(f"task {name!r} takes no local data: lm-eval loads it in its own way")
    used = [one for one in present(definition, data) if not one.own_rows]
    if not used:
        return own
    digest = hashlib.sha256(f"{own}\0{_harness()}\0".encode())
    for one in used:
        for line in _described(one, data, one.shots(shots)):
            digest.update(line.encode())
    return digest.hexdigest()


def _described(definition: Definition, data: str, shots: int) -> Iterator[str]:
    """The wording of a task and the content of its data, without their places."""
    for file in with_includes(definition.path):
        yield f"{definition.name if definition.stock else ''}\0{_sha256(file)}\0"
    for split, files in split_files(definition, data, shots).items():
        for file in files:
            yield f"{split}\0{file.suffix}\0{_sha256(local(file))}\0"


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    for file in task_files(path):
        digest.update(f"{file.relative_to(path.parent)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _named_in(path: Path) -> Iterator[Path]:
    text = path.read_text(encoding="utf-8")
    named = {path.name, *_DATA_FILE.findall(text)}
    named |= {f"{module}.py" for module in _FUNCTION.findall(text)}
    return (path.parent / name for name in named if (path.parent / name).is_file())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _harness() -> str:
    try:
        return f"lm-eval {version('lm-eval')}"
    except PackageNotFoundError as error:
        raise InputError(
            "lm-eval is not installed, and a task's scores depend on its version: pip install"
            " 'dllm-sweep[worker]'"
        ) from error
