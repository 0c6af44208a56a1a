"""The whole work beside the GPU on one page: load, calibrate, quantize, outliers, evaluate.

Nothing here knows of Ray or of the store: `Workbench.run` turns a claim and a unit into a result.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from functools import lru_cache

import torch

from dllm_sweep.calibration import load as load_calibration
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import QuantizationError
from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.methods import build as build_method
from dllm_sweep.models import load_model
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.outlier_study import outliers
from dllm_sweep.quant import artifact as weights_artifact
from dllm_sweep.records import Artifact, Claim, Cost, UnitResult
from dllm_sweep.spec import CalibrationSpec, TaskSpec, TrialSpec, Unit
from dllm_sweep.workers import files, samples
from dllm_sweep.workers.failures import WeightsLost
from dllm_sweep.workers.messages import WorkerOptions

log = logging.getLogger(__name__)

_CALIBRATIONS_KEPT = 4


class Workbench:
    """The model in a worker's memory, and what is done with it.

    A model is loaded when a trial needs it and quantized in place, so the next trial loads it
    afresh; the units of one trial share it.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._model: DiffusionModel | None = None
        self._holds: str | None = None
        self._weights: tuple[str, Artifact] | None = None
        self._calibration = lru_cache(maxsize=_CALIBRATIONS_KEPT)(self._load_calibration)

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Do one unit of a trial.

        Raises:
            WeightsLost: If the trial was quantized elsewhere and its weights are not there any
                more, or not whole: the caller runs the `quantize` unit again.
        """
        started = time.monotonic()
        if self.options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        batch_size = max(1, int(self.options.batch_size * claim.batch_scale))
        if unit.kind == "quantize":
            result = self._quantize(claim, batch_size)
        elif unit.kind == "outliers":
            result = self._outliers(claim, batch_size)
        else:
            result = self._evaluate(claim, unit, batch_size)
        return _finished(result, unit, time.monotonic() - started, self.options.device)

    def discard_weights(self, claim: Claim) -> None:
        """Remove the quantized weights of a finished trial: they only serve its resuming."""
        if self._weights is not None and self._weights[0] == claim.trial_key:
            (self.options.files / self._weights[1].path).unlink(missing_ok=True)

    def _quantize(self, claim: Claim, batch_size: int) -> UnitResult:
        trial = claim.trial
        model = self._load(trial)
        method = build_method(trial.method, dict(trial.parameters))
        batches: tuple[CalibrationBatch, ...] = ()
        if trial.calibration is not None:
            batches = self._calibration(str(trial.model), trial.calibration, batch_size)
        started = time.monotonic()
        self._holds = None
        report = method.quantize(
            model, trial.scheme, batches, seed=trial.seed, progress=_log_progress
        )
        seconds = time.monotonic() - started
        _refuse_broken_weights(model)
        with files.new_file(self.options.files / "weights", ".safetensors") as path:
            saved = weights_artifact.save(model, path)
            artifact = files.adopt(path, self.options.files, "weights", sha256=saved.sha256)
        self._holds, self._weights = claim.trial_key, (claim.trial_key, artifact)
        for warning in report.warnings:
            log.warning("%s", warning)
        bits = sum(row.bits for row in report.modules)
        return UnitResult(
            unit=Unit(kind="quantize"),
            wall_s=0.0,
            modules=report.modules,
            costs=(
                Cost(name="average_bits", value=report.average_bits, unit="bit"),
                Cost(name="quantized_weight_bytes", value=bits / 8, unit="B"),
                Cost(name="quantize_s", value=seconds, unit="s"),
            ),
            artifacts=(artifact,),
            warnings=report.warnings,
        )

    def _outliers(self, claim: Claim, batch_size: int) -> UnitResult:
        model = self._ready(claim)
        rows = outliers(model, spec=claim.trial.protocol.outliers, batch_size=batch_size)
        return UnitResult(unit=Unit(kind="outliers"), wall_s=0.0, outliers=rows)

    def _evaluate(self, claim: Claim, unit: Unit, batch_size: int) -> UnitResult:
        model = self._ready(claim)
        trial = claim.trial
        scored = evaluate_task(
            model,
            _task(trial, unit),
            trial.protocol.decoding,
            seed=trial.seed,
            batch_size=batch_size,
        )
        with files.new_file(self.options.files / "samples", ".parquet") as path:
            samples.write(scored.samples, path)
            artifact = files.adopt(path, self.options.files, "samples")
        return UnitResult(unit=unit, wall_s=0.0, metrics=scored.metrics, artifacts=(artifact,))

    def _load(self, trial: TrialSpec) -> DiffusionModel:
        """The trial's model in full precision, loaded if the one at hand was quantized."""
        name, dtype = str(trial.model), trial.protocol.dtype
        wanted = f"{name} in {dtype}"
        if self._model is None or self._holds != wanted:
            self._model, self._holds = None, None  # frees the old one first
            log.info("loading %s", wanted)
            self._model = load_model(name, device=self.options.device, dtype=dtype)
            self._holds = wanted
        return self._model

    def _ready(self, claim: Claim) -> DiffusionModel:
        """The trial's model as it is to be measured."""
        if claim.trial.is_baseline:
            return self._load(claim.trial)
        if self._model is not None and self._holds == claim.trial_key:
            return self._model
        return self._restore(claim, claim.weights)

    def _restore(self, claim: Claim, artifact: Artifact | None) -> DiffusionModel:
        if artifact is None or not files.is_whole(artifact, self.options.files):
            raise WeightsLost(f"the quantized weights of {claim.label} are not there")
        log.info("restoring quantized weights %s", artifact.path)
        model = self._load(claim.trial)
        self._holds = None
        weights_artifact.load(model, self.options.files / artifact.path)
        self._holds, self._weights = claim.trial_key, (claim.trial_key, artifact)
        return model

    def _load_calibration(
        self, model: str, spec: CalibrationSpec, batch_size: int
    ) -> tuple[CalibrationBatch, ...]:
        if self._model is None:
            raise RuntimeError(f"{model} must be in memory before its calibration text is read")
        batches: tuple[CalibrationBatch, ...] = load_calibration(
            spec, self._model, batch_size=batch_size
        )
        return batches


def _task(trial: TrialSpec, unit: Unit) -> TaskSpec:
    return next(task for task in trial.protocol.tasks if task.name == unit.task)


def _refuse_broken_weights(model: DiffusionModel) -> None:
    """Scores of weights that are no numbers look like a bad method; they are a broken one."""
    for name, linear in model.linears().items():
        if not torch.isfinite(linear.weight).all():
            raise QuantizationError(f"{name}: quantized weights are NaN or infinite")


def _log_progress(done: int, total: int) -> None:
    log.info("quantized block %d of %d", done, total)


def _finished(result: UnitResult, unit: Unit, wall_s: float, device: str) -> UnitResult:
    costs = result.costs
    if device == "cuda":
        peak = float(torch.cuda.max_memory_allocated())
        costs = (*costs, Cost(name=f"peak_gpu_bytes:{unit.key}", value=peak, unit="B"))
    return replace(result, unit=unit, wall_s=wall_s, costs=costs)
