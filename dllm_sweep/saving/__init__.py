"""Quantized models as folders that can be loaded, copied and published."""

from __future__ import annotations

from dllm_sweep.saving.folder import LAYOUTS, SavedModel, save_quantized

__all__ = ["LAYOUTS", "SavedModel", "save_quantized"]
