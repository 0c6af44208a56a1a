"""What decides a trial's quantized weights, and making them, block by block."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch

from dllm_sweep import __version__
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.methods.base import QuantizationReport, Workspace
from dllm_sweep.methods.parameters import build
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.input_statistics import input_statistics
from dllm_sweep.sharing import quantization_key
from dllm_sweep.shipping import local
from dllm_sweep.spec import FULL_PRECISION_BITS, TrialSpec
from dllm_sweep.workers import shared
from dllm_sweep.workers.blocks import KeptBlocks
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.stages import Stage, StageCache


def quantized_stage(trial: TrialSpec) -> Stage | None:
    """The stage of a trial's quantized weights; None if its inputs are not known by content."""
    return _stage("quantized", ".json", trial)


def kept_blocks(
    depot: Depot, trial: TrialSpec, batches: Sequence[CalibrationBatch], device_name: str
) -> KeptBlocks:
    """Find a trial's finished blocks, or none if its inputs are not known by content.

    A resumed quantization gives the bits of an undisturbed one: blocks are only found where
    everything is the same that may change the last of them, such as how the text is cut into
    batches.
    """
    software = [__version__, torch.__version__]
    bits = [software, _digest(batches), device_name, torch.get_num_threads()]
    return KeptBlocks(depot, _stage("blocks", ".safetensors", trial), bits)


def _digest(batches: Sequence[CalibrationBatch]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        for name, tensor in batch.tensors().items():
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _stage(name: str, suffix: str, trial: TrialSpec) -> Stage | None:
    key = quantization_key(trial)
    if key is None:
        return None
    return Stage(name=name, version=2, inputs=[key, code_of(trial.method)], suffix=suffix)


@lru_cache
def code_of(method: str) -> str:
    """Digest of a method's own file, which may change without its version being raised.

    Once a process: the class that was imported stays as it was, too.
    """
    file = local(method.rpartition(":")[0])
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def quantize(
    model: DiffusionModel,
    trial: TrialSpec,
    batches: Sequence[CalibrationBatch],
    stages: StageCache,
    blocks: KeptBlocks,
) -> QuantizationReport:
    """Quantize a full-precision model in place as a trial says.

    Args:
        model: The trial's.
        trial: What is done to it.
        batches: Its calibration text.
        stages: Where inputs that were measured before are found.
        blocks: Where finished blocks are found and kept.

    Raises:
        QuantizationError: If the method cannot quantize it, leaves a weight that is no number, or
            is of another version than the one that the trial was planned for.
    """
    method = build(trial.method, dict(trial.parameters))
    _refuse_other_version(trial, method.version)
    statistics = input_statistics
    if trial.calibration is not None:
        statistics = shared.statistics_of(stages, trial.model, trial.calibration)
    workspace = Workspace(progress=blocks.progress, statistics=statistics, finished=blocks)
    report = method.quantize(model, trial.scheme, batches, seed=trial.seed, workspace=workspace)
    _refuse_broken_weights(model)
    return report


def average_bits(model: DiffusionModel, report: QuantizationReport) -> float:
    """Mean bits of a weight over all linears of a model's blocks, those left out at 16."""
    bits = {row.module: row.bits for row in report.modules}
    weights = {name: linear.weight.numel() for name, linear in model.linears().items()}
    stored = (bits.get(name, count * FULL_PRECISION_BITS) for name, count in weights.items())
    return float(sum(stored) / sum(weights.values()))


def _refuse_other_version(trial: TrialSpec, version: int) -> None:
    """A trial's key says which version's results it stands for; no other's may stand under it."""
    if version != trial.method_version:
        raise QuantizationError(
            f"the trial was planned for version {trial.method_version} of {trial.method}, which is"
            f" at version {version} now: launch the sweep file again to plan it anew"
        )


def _refuse_broken_weights(model: DiffusionModel) -> None:
    """Scores of weights that are no numbers look like a bad method; they are a broken one."""
    for name, linear in model.linears().items():
        if not torch.isfinite(linear.weight).all():
            raise QuantizationError(f"{name}: quantized weights are NaN or infinite")
