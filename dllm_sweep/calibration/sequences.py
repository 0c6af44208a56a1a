"""From text to batches of token ids, some of them hidden, and how much each token counts."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from dllm_sweep import plugins
from dllm_sweep.calibration.base import Masking, ProgressCallback
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.options import KIND, check_calibration
from dllm_sweep.errors import CalibrationError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import CalibrationSpec


def load(
    spec: CalibrationSpec,
    model: DiffusionModel,
    *,
    batch_size: int,
    progress: ProgressCallback | None = None,
) -> tuple[CalibrationBatch, ...]:
    """Read, tokenize, cut and mask calibration text.

    The sequences and their masks depend on `spec`, the tokenizer and, if the mode lets the model
    write, on the model; not on `batch_size`.

    Args:
        spec: Which text, how much of it, and how it is masked.
        model: Whom it is for; in full precision.
        batch_size: Sequences in a batch.
        progress: Called now and then where the model has to write first.

    Raises:
        CalibrationError: If the text cannot be read or is too short, options do not go together,
            or the sequences are longer than the model's.
        UnknownName: If the masking mode does not exist.
    """
    return tuple(whole(spec, model, progress=progress).split(batch_size))


def whole(
    spec: CalibrationSpec, model: DiffusionModel, *, progress: ProgressCallback | None = None
) -> CalibrationBatch:
    """Make all sequences as one batch; `load` cuts it.

    Raises:
        CalibrationError: See `load`.
        UnknownName: See `load`.
    """
    check_calibration(spec)
    if spec.length > model.max_length:
        raise CalibrationError(
            f"calibration length {spec.length} is more than the {model.max_length} tokens that"
            f" {model.name} can read"
        )
    mode: Masking = plugins.load(KIND, spec.masking)
    generator = torch.Generator().manual_seed(spec.seed)
    made = mode.sequences(spec, model, generator, progress)
    weights = _weights(spec, made)
    if weights is not None and not bool(weights.any()):
        raise CalibrationError(
            f"calibration {spec}: no token counts, since none is masked; ask for more samples or"
            " raise visible_weight"
        )
    return dataclasses.replace(made, weights=weights)


def _weights(spec: CalibrationSpec, made: CalibrationBatch) -> Tensor | None:
    """(N, L) float32, 0 for padding; None if every token counts the same."""
    shown = made.attention_mask
    if spec.masked_weight == spec.visible_weight:
        return None if shown is None else shown.float()
    weights = torch.full(made.masked.shape, spec.visible_weight, dtype=torch.float32)
    weights[made.masked] = spec.masked_weight
    return weights if shown is None else weights * shown
