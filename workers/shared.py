"""The stages that trials share: calibration batches and activation statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dllm_sweep import plugins
from dllm_sweep.calibration.base import ProgressCallback
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.options import KIND
from dllm_sweep.calibration.sequences import whole
from dllm_sweep.methods.base import Statistics
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.input_statistics import InputStatistics, input_statistics
from dllm_sweep.spec import CalibrationSpec, ModelRef, to_json
from dllm_sweep.workers.stages import Stage, StageCache

_TENSORS = ".safetensors"


def calibration_batches(
    cache: StageCache,
    model: DiffusionModel,
    ref: ModelRef,
    spec: CalibrationSpec,
    batch_size: int,
    progress: ProgressCallback | None = None,
) -> tuple[CalibrationBatch, ...]:
    """Make calibration sequences once for every worker and trial of this machine that sees them.

    Args:
        cache: Where the stage is kept.
        model: In full precision: its tokenizer reads the text, and it may write itself.
        ref: The model's name and content.
        spec: The text; it is kept only if the contents of model and text are known.
        batch_size: Sequences in a batch; it does not change the sequences.
        progress: Called now and then where the model has to write first.

    Raises:
        CalibrationError: If the text cannot be read or is too short.
    """
    if ref.digest is None or spec.digest is None:
        return tuple(whole(spec, model, progress=progress).split(batch_size))
    # What a model writes depends on how it rounds, what its tokenizer reads does not.
    kind = _kind(model.dtype, model.device) if plugins.load(KIND, spec.masking).reads_model else []
    inputs = [ref.digest, to_json(spec), kind]
    stage = Stage(name="calibration", version=2, inputs=inputs, suffix=_TENSORS)

    def make(path: Path) -> None:
        tensors = whole(spec, model, progress=progress).tensors()
        save_file({name: part.contiguous() for name, part in tensors.items()}, path)

    kept = {"attention_mask": None, **load_file(cache.file(stage, make))}
    return tuple(CalibrationBatch(**kept).split(batch_size))


def statistics_of(cache: StageCache, ref: ModelRef, spec: CalibrationSpec) -> Statistics:
    """Give a workspace's `statistics`: `activation_statistics` of one model and one text."""

    def measure(
        model: DiffusionModel,
        batches: Sequence[CalibrationBatch],
        device: torch.device | None = None,
    ) -> dict[str, InputStatistics]:
        return activation_statistics(cache, model, ref, spec, batches, device)

    return measure


def activation_statistics(
    cache: StageCache,
    model: DiffusionModel,
    ref: ModelRef,
    spec: CalibrationSpec,
    batches: Sequence[CalibrationBatch],
    device: torch.device | None = None,
) -> dict[str, InputStatistics]:
    """Measure what the linears of a full-precision model read, once for all trials that ask.

    Args:
        cache: Where the stage is kept.
        model: In full precision.
        ref: The model's name and content.
        spec: The text that `batches` were made from.
        batches: What the model sees; how they are cut is part of the key, since it may change the
            last bits of activations.
        device: Where blocks are computed; None is where their weights are.

    Returns:
        Statistics by the linear's full name, as `input_statistics` gives them.
    """
    if ref.digest is None or spec.digest is None:
        fresh: dict[str, InputStatistics] = input_statistics(model, batches, device)
        return fresh
    sizes = [len(batch.input_ids) for batch in batches]
    inputs = [ref.digest, to_json(spec), sizes, _kind(model.dtype, device or model.device)]
    stage = Stage(name="activations", version=2, inputs=inputs, suffix=_TENSORS)

    def make(path: Path) -> None:
        measured = input_statistics(model, batches, device)
        parts = {name: one.tensors() for name, one in measured.items()}
        save_file(
            {f"{n}.{k}": t.clone() for n, part in parts.items() for k, t in part.items()}, path
        )

    tensors = load_file(cache.file(stage, make))
    return {name: InputStatistics.of(tensors, name) for name in model.linears()}


def _kind(dtype: torch.dtype, device: torch.device) -> list[str]:
    return [str(dtype), device.type]
