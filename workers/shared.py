"""The stages that trials share: tokenized text and activation statistics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file, save_file

from dllm_sweep.calibration import load as load_calibration
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.input_statistics import InputStatistics, input_statistics
from dllm_sweep.spec import CalibrationSpec, ModelRef, to_json
from dllm_sweep.workers.stages import Stage, StageCache

_TENSORS = ".safetensors"


def calibration_batches(
    cache: StageCache, model: DiffusionModel, ref: ModelRef, spec: CalibrationSpec, batch_size: int
) -> tuple[CalibrationBatch, ...]:
    """Read calibration text, tokenized and masked once for every worker and trial that sees it.

    Args:
        cache: Where the stage is kept.
        model: Its tokenizer reads the text.
        ref: The model's name and content.
        spec: The text; it is kept only if the contents of model and text are known.
        batch_size: Sequences in a batch; it does not change the sequences.

    Raises:
        CalibrationError: If the text cannot be read or is too short.
    """
    if ref.digest is None or spec.digest is None:
        batches: tuple[CalibrationBatch, ...] = load_calibration(spec, model, batch_size=batch_size)
        return batches
    inputs = [ref.digest, to_json(spec)]
    stage = Stage(name="calibration", version=1, inputs=inputs, suffix=_TENSORS)

    def make(path: Path) -> None:
        (whole,) = load_calibration(spec, model, batch_size=spec.samples)
        save_file({"input_ids": whole.input_ids, "masked": whole.masked}, path)

    tensors = load_file(cache.file(stage, make))
    ids, masked = (tensors[name].split(batch_size) for name in ("input_ids", "masked"))
    return tuple(
        CalibrationBatch(input_ids=part, attention_mask=None, masked=mask)
        for part, mask in zip(ids, masked, strict=True)
    )


def activation_statistics(
    cache: StageCache,
    model: DiffusionModel,
    ref: ModelRef,
    spec: CalibrationSpec,
    batches: Sequence[CalibrationBatch],
) -> dict[str, InputStatistics]:
    """Measure what the linears of a full-precision model read, once for all trials that ask.

    Args:
        cache: Where the stage is kept.
        model: In full precision.
        ref: The model's name and content.
        spec: The text that `batches` were made from.
        batches: What the model sees; how they are cut is part of the key, since it may change the
            last bits of activations.

    Returns:
        Statistics by the linear's full name, as `input_statistics` gives them.
    """
    if ref.digest is None or spec.digest is None:
        fresh: dict[str, InputStatistics] = input_statistics(model, batches)
        return fresh
    sizes = [len(batch.input_ids) for batch in batches]
    kind = [str(model.dtype), model.device.type]
    inputs = [ref.digest, to_json(spec), sizes, kind]
    stage = Stage(name="activations", version=1, inputs=inputs, suffix=_TENSORS)

    def make(path: Path) -> None:
        measured = input_statistics(model, batches)
        parts = {name: one.tensors() for name, one in measured.items()}
        save_file(
            {f"{n}.{k}": t.clone() for n, part in parts.items() for k, t in part.items()}, path
        )

    tensors = load_file(cache.file(stage, make))
    return {name: InputStatistics.of(tensors, name) for name in model.linears()}
