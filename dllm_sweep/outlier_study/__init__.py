"""Outliers in the activations: how large, in which channels and tokens, masked or visible."""

from __future__ import annotations

from typing import Any

__all__ = ["outliers"]


def __getattr__(name: str) -> Any:
    if name != "outliers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dllm_sweep.outlier_study.study import outliers

    return outliers
