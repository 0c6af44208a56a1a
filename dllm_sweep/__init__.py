"""Sweeps of post-training quantization for diffusion language models.

The public Python API is what this module exports; it is imported on first use, so that
`import dllm_sweep` costs next to nothing.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_root = Path(__file__).resolve().parent
if not (_root / "db").is_dir():
    # A checkout keeps db/, workers/ and kernels/ beside the package; a wheel holds them inside.
    __path__.append(str(_root.parent))

_EXPORTS = {
    "generate": "dllm_sweep.decoding",
    "launch": "dllm_sweep.run",
    "load_model": "dllm_sweep.models",
    "log_likelihood": "dllm_sweep.decoding",
    "nll_bound": "dllm_sweep.decoding",
    "open_store": "dllm_sweep.db.connect",
    "outliers": "dllm_sweep.outlier_study",
    "quantize": "dllm_sweep.methods",
    "save_quantized": "dllm_sweep.saving",
}

__all__ = [
    "__version__",
    "generate",
    "launch",
    "load_model",
    "log_likelihood",
    "nll_bound",
    "open_store",
    "outliers",
    "quantize",
    "save_quantized",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
