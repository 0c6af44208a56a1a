"""Text that quantization methods and the outlier study see."""

from __future__ import annotations

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dllm_sweep.calibration.sequences import load

    return load
