"""Settings of a published study under one word: `preset: paper` in a sweep file.

One preset is one file beside this one with an object `PLUGIN`; `qdlm-code` is `qdlm_code.py`. What
a sweep file says itself goes before what its preset says.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from dllm_sweep.errors import UnknownName
from dllm_sweep.presets.base import Preset


def names() -> tuple[str, ...]:
    """Names of the presets, sorted."""
    known = {path.stem for path in Path(__file__).parent.glob("*.py")}
    return tuple(sorted(stem.replace("_", "-") for stem in known - {"__init__", "base"}))


def load(name: str) -> Preset:
    """Give the preset of this name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in names():
        raise UnknownName("preset", name, names())
    module = f"dllm_sweep.presets.{name.replace('-', '_')}"
    preset: Preset = importlib.import_module(module).PLUGIN
    return preset
