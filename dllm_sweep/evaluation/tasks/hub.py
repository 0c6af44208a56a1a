"""Whether a data set of the hub is at hand or within reach, asked without downloading it."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from dllm_sweep.errors import InputError

_FORMATS = frozenset({"json", "csv", "parquet", "text", "arrow", "xml", "webdataset"})
_TIMEOUT_S = 20.0


def check_data_set(task: str, hub_id: str, subset: str | None) -> None:
    """Refuse a data set that is neither in this machine's cache nor reachable.

    Args:
        task: The task that needs it, for the message.
        hub_id: `owner/name`; a file format or a folder needs no hub.
        subset: Its subset, None for its only one.

    Raises:
        InputError: If it can be had in neither way.
    """
    if hub_id in _FORMATS or not hub_id or Path(hub_id).exists() or is_cached(hub_id, subset):
        return
    reason = _unreachable(hub_id)
    if reason:
        raise InputError(
            f"task {task!r}: its data set {hub_id} is neither in this machine's cache nor"
            f" reachable ({reason}): name a folder with its files (`data: DIR`), or run once with"
            " a network"
        )


def is_cached(hub_id: str, subset: str | None) -> bool:
    """Say whether a subset of a data set was downloaded and prepared on this machine before."""
    owner, _, name = hub_id.rpartition("/")
    wanted = (f"{owner}___{name}" if owner else name).lower()
    folders = [one for one in _entries(_cache()) if one.name.lower() == wanted]
    subsets = [one for folder in folders for one in _entries(folder) if one.is_dir()]
    return any(
        next(one.glob("*/*/dataset_info.json"), None) is not None
        for one in subsets
        if subset is None or one.name == subset
    )


def _cache() -> Path:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets")).expanduser()


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


@lru_cache
def _unreachable(hub_id: str) -> str:
    """Why the hub does not give a data set; empty if it does. Asked once a process."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(hub_id, timeout=_TIMEOUT_S)
    except Exception as error:
        # Whatever the client's network stack raises: there are a dozen kinds.
        return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".rstrip(": ")
    return ""
