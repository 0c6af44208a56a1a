"""Generating text and scoring answers with masked diffusion language models."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "generate": "dllm_sweep.decoding.sampler",
    "log_likelihood": "dllm_sweep.decoding.likelihood",
    "nll_bound": "dllm_sweep.decoding.bound",
}

__all__ = ["generate", "log_likelihood", "nll_bound"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
