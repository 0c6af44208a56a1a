"""Post-training quantization methods, one a file: a method's name is its file's name."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "build": "dllm_sweep.methods.parameters",
    "quantize": "dllm_sweep.methods.in_place",
}

__all__ = ["build", "quantize"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
