"""Which versions a cluster file should name: the tested ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dllm_sweep.cluster_lints.software import normal

CONSTRAINTS = "constraints.txt"
_FALLBACK = ("ray", "torch", "transformers", "lm-eval")


def tested_versions(folder: Path) -> Mapping[str, str]:
    """Versions of the nearest constraints.txt in `folder` or above, else what is installed here."""
    for above in (folder, *folder.parents):
        file = above / CONSTRAINTS
        if file.is_file():
            return _read(file)
    return _installed()


def _read(file: Path) -> Mapping[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    pins = [re.fullmatch(r"([A-Za-z0-9_.-]+)==(\S+)", line.strip()) for line in lines]
    return {normal(pin[1]): pin[2] for pin in pins if pin}


def _installed() -> Mapping[str, str]:
    found = {}
    for name in _FALLBACK:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            continue
    return found
