"""Quantizing a loaded model in one call, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.sequences import load
from dllm_sweep.calibration.sources import calibration_digest
from dllm_sweep.errors import InputError, QuantizationError
from dllm_sweep.methods.base import ALONE, Workspace
from dllm_sweep.methods.parameters import build
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.saving.recipes import recipe_of
from dllm_sweep.spec import CalibrationSpec, QuantScheme

Calibration: TypeAlias = (
    CalibrationSpec | Sequence[CalibrationBatch] | Sequence[Sequence[int]] | Tensor
)
"""A specification, batches, or token ids (N, L) without padding."""

_BATCH_SIZE = 8


def quantize(
    model: DiffusionModel,
    *,
    method: str = "rtn",
    scheme: str | QuantScheme = "w4a16-g128",
    calibration: Calibration | None = None,
    seed: int = 0,
    workspace: Workspace = ALONE,
    **parameters: Any,
) -> DiffusionModel:
    """Quantize a model in place.

    Args:
        model: What `load_model` returned, in full precision.
        method: Name of a method, or `path/to/file.py:Class`.
        scheme: Bit-widths and grids, such as `w4a16-g128`.
        calibration: What the method sees; None is the package's own text, 128 sequences of 128.
        seed: Seed of the method's own random choices.
        workspace: Who watches, and where blocks are computed; it does not change the result.
        parameters: The method's parameters.

    Returns:
        The same model; its `quantization_report` says what was really quantized, its `recipe` how.

    Raises:
        InputError: If the method cannot do this scheme, or a name or a value is wrong.
        QuantizationError: If a module pattern matches nothing or a size does not fit.
    """
    chosen = build(method, parameters)
    target = QuantScheme.parse(scheme) if isinstance(scheme, str) else scheme
    refusal = chosen.refusal(target)
    if refusal is not None:
        raise InputError(f"method {method!r}: {refusal}")
    if model.quantization_report is not None:
        raise QuantizationError(
            f"{model.name} is quantized already; load the model again before quantizing it"
        )
    seen = _pinned(calibration) if chosen.needs_calibration else None
    batches = () if seen is None else calibration_batches(model, seen)
    text = seen if isinstance(seen, CalibrationSpec) else None
    recipe = recipe_of(
        model,
        method=method,
        built=chosen,
        scheme=target,
        calibration=text,
        tokens=[batch.input_ids for batch in batches] if text is None else (),
        seed=seed,
    )
    model.quantization_report = chosen.quantize(
        model, target, batches, seed=seed, workspace=workspace
    )
    model.recipe = recipe
    return model


def _pinned(calibration: Calibration | None) -> Calibration:
    """Give a text the digest of what it is now."""
    text = CalibrationSpec() if calibration is None else calibration
    if isinstance(text, CalibrationSpec) and text.digest is None:
        return replace(text, digest=calibration_digest(text))
    return text


def calibration_batches(
    model: DiffusionModel, calibration: Calibration | None
) -> tuple[CalibrationBatch, ...]:
    """Turn any form of calibration into batches.

    Raises:
        CalibrationError: If a text set cannot be read or is too small.
    """
    if calibration is None or isinstance(calibration, CalibrationSpec):
        spec = CalibrationSpec() if calibration is None else calibration
        return load(spec, model, batch_size=_BATCH_SIZE)
    if not isinstance(calibration, Tensor) and isinstance(calibration[0], CalibrationBatch):
        return tuple(calibration)
    ids = torch.as_tensor(calibration, dtype=torch.int64)
    return tuple(
        CalibrationBatch(input_ids=part, attention_mask=None, masked=part == model.special.mask_id)
        for part in ids.split(_BATCH_SIZE)
    )
