"""Extensions by file: a name is a file in a folder; a user's own is `path/to/file.py:Name`.

Listing never imports anything, so that `dllm-sweep list` and `--help` stay light.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from dllm_sweep import shipping
from dllm_sweep.errors import InputError, UnknownName

PACKAGE = Path(__file__).parent
_FOLDERS = {
    "method": "methods",
    "model family": "models",
    "decoding algorithm": "decoding",
    "masking": "calibration",
}
"""Folders with one extension a file: the files that assign the module attribute `PLUGIN`."""


def names(kind: str) -> tuple[str, ...]:
    """All names of one kind: the files of its folder, then what installed packages add."""
    files = (PACKAGE / _FOLDERS[kind]).glob("*.py")
    own = {file.stem for file in files if "\nPLUGIN" in file.read_text(encoding="utf-8")}
    return tuple(sorted(own | {entry.name for entry in _entry_points(kind)}))


def load(kind: str, name: str) -> Any:
    """Import the extension `name`: an installed one, or `file.py:Name` of the user's own.

    Raises:
        UnknownName: If nothing has this name.
        InputError: If a user's file cannot be imported or does not define the name.
    """
    if ".py:" in name:
        return _load_from_file(kind, name)
    if name not in names(kind):
        raise UnknownName(kind, name, names(kind))
    for entry in _entry_points(kind):
        if entry.name == name:
            return entry.load()
    return importlib.import_module(f"dllm_sweep.{_FOLDERS[kind]}.{name}").PLUGIN


@cache
def _entry_points(kind: str) -> Any:
    # Reading the metadata of all installed packages takes 20 ms; planning asks for each trial.
    return entry_points(group=f"dllm_sweep.{kind.replace(' ', '_')}s")


def _load_from_file(kind: str, name: str) -> Any:
    named, _, attribute = name.rpartition(":")
    path = str(shipping.local(named))
    if not Path(path).is_file():
        raise InputError(f"{kind} {name!r}: there is no file {path}")
    try:
        module = _import_file(Path(path).resolve())
    except Exception as error:
        raise InputError(
            f"{kind} {name!r}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise InputError(f"{kind} {name!r}: {path} defines no {attribute}")
    return getattr(module, attribute)


def _import_file(path: Path) -> ModuleType:
    # One module object per file: a class must be the same class on every load in a process.
    name = f"dllm_sweep_user_{path.stem}_{abs(hash(path))}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
