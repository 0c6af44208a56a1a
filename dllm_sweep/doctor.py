"""What works on this machine: each part is looked at on its own, and none can break the others."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dllm_sweep.errors import StoreEmpty, SweepError

_WORKER_HINT = 'pip install "dllm-sweep[worker]"'
_NEEDED_GIB = 2.0
_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """How one part is.

    Attributes:
        part: Which part, such as `torch`.
        state: `ok`, `note` (works without it) or `broken`.
        found: What is there.
        advice: What to do about it; empty if nothing.
    """

    part: str
    state: str
    found: str
    advice: str = ""


def examine(store: str | None) -> tuple[Finding, ...]:
    """Look at everything a sweep needs. Never raises: what goes wrong becomes a finding.

    Args:
        store: The store's address as the user wrote it; None is the default.
    """
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("Python", _python),
        ("torch", _torch),
        ("GPU", _gpu),
        ("transformers", lambda: _package("transformers")),
        ("lm-eval", lambda: _package("lm_eval", "lm-eval")),
        ("Ray", lambda: _package("ray")),
        ("store", lambda: _store(store)),
        ("disk", _disk),
        ("memory", _memory),
    )
    return tuple(_guarded(part, check) for part, check in checks)


def _guarded(part: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except SweepError as error:
        return Finding(part, "broken", "cannot be used", str(error))
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(part, "broken", "cannot be used", text)


def _python() -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info < _OLDEST_PYTHON:
        return Finding("Python", "broken", found, "install Python 3.11 or newer")
    return Finding("Python", "ok", found)


def _package(module: str, distribution: str | None = None) -> Finding:
    """Whether a package imports: one that is installed may still be broken."""
    name = distribution or module
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, "broken", "not installed", f"{_WORKER_HINT} (only runs need it)")
    try:
        importlib.import_module(module)
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return Finding(name, "broken", f"{version} does not import: {text}", _WORKER_HINT)
    return Finding(name, "ok", version)


def _torch() -> Finding:
    finding = _package("torch")
    if finding.state != "ok":
        return finding
    import torch

    threads = torch.get_num_threads()
    built = torch.version.cuda or "CPU only"
    return Finding("torch", "ok", f"{torch.__version__} (built for {built}, {threads} threads)")


def _gpu() -> Finding:
    try:
        import torch
    except ImportError:
        return Finding("GPU", "note", "not looked for: no torch", _WORKER_HINT)
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("GPU", "ok", ", ".join(names))
    if not Path("/dev/nvidiactl").exists():
        return Finding("GPU", "note", "none; trials run on CPUs", "fine for the embedded models")
    if torch.version.cuda is None:
        advice = "install a torch for CUDA first (pytorch.org), then dllm-sweep"
    else:
        advice = f"the driver is older than CUDA {torch.version.cuda}: update it, or an older torch"
    return Finding("GPU", "broken", "there is one, but torch cannot use it", advice)


def _store(store: str | None) -> Finding:
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.db.engines import safe_url
    from dllm_sweep.db.mounts import refuse_network
    from dllm_sweep.stored import resolve_store, store_is_new

    address = resolve_store(store)
    name = safe_url(address)
    if store_is_new(address):
        folder = Path(address.removeprefix("sqlite:///")).parent
        if not os.access(folder, os.W_OK):
            return Finding("store", "broken", name, f"{folder} is not a folder you can write to")
        refuse_network(folder)
        return Finding("store", "note", f"{name}: none yet", "`dllm-sweep launch` makes it")
    try:
        opened = open_store(address, create=False)
    except StoreEmpty:
        return Finding("store", "note", f"{name}: empty", "`dllm-sweep launch` fills it")
    try:
        sweeps = len(opened.progress().rows)
    finally:
        opened.close()
    return Finding("store", "ok", f"{name}: {sweeps} sweeps")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    found = f"{free:.1f} GiB free in {Path.cwd()}"
    if free < _NEEDED_GIB:
        advice = f"make room: a sweep of the embedded models needs {_NEEDED_GIB:.0f} GiB"
        return Finding("disk", "broken", found, advice)
    return Finding("disk", "ok", found)


def _memory() -> Finding:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    found = f"{pages:.1f} GiB, {os.cpu_count()} cores"
    if pages < _NEEDED_GIB:
        return Finding("memory", "broken", found, f"a worker needs {_NEEDED_GIB:.0f} GiB")
    return Finding("memory", "ok", found)
