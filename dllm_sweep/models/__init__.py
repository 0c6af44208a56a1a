"""Loading diffusion language models: one family a file, embedded checkpoints beside them."""

from __future__ import annotations

from typing import Any

__all__ = ["load_model"]


def __getattr__(name: str) -> Any:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dllm_sweep.models.load import load_model

    return load_model
