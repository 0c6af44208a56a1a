"""The whole work beside the GPU on one page: load, calibrate, quantize, outliers, evaluate.

Nothing here knows of Ray or of the store: `Workbench.run` turns a claim and a unit into a result.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.evaluation.tasks import check_task_data
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.load import load_model, weight_bytes
from dllm_sweep.outlier_study import outliers
from dllm_sweep.quant import artifact as weights_artifact
from dllm_sweep.records import Artifact, Claim, Cost, UnitResult
from dllm_sweep.sharing import quantization_key
from dllm_sweep.spec import TaskSpec, TrialSpec, Unit
from dllm_sweep.workers import devices, files, quantizing, samples, shared
from dllm_sweep.workers.depot import open_depot
from dllm_sweep.workers.failures import WeightsLost
from dllm_sweep.workers.messages import WorkerOptions
from dllm_sweep.workers.stages import Quantized, Stage, StageCache

log = logging.getLogger(__name__)


class Workbench:
    """The model in a worker's memory, and what is done with it.

    A model is loaded when a trial needs it and quantized in place, so the next trial loads it
    afresh; the units of one trial share it.

    Attributes:
        options: What is the same for all units.
        device_name: `cpu` or the GPU's name.
        worn_out: Whether the process should be replaced: a model that was let go has left memory
            of a GPU taken.
    """

    def __init__(self, options: WorkerOptions) -> None:
        self.options = options
        self._devices = devices.prepare(options)
        self.device_name = devices.describe(self._devices)
        self.worn_out = False
        self._depot = open_depot(options)
        self._stages = StageCache(self._depot)
        self._model: DiffusionModel | None = None
        self._holds: str | None = None
        self._checked: set[TaskSpec] = set()
        self._made: tuple[str, int, Artifact] | None = None
        """Trial, attempt and weights that this process quantized or found."""

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Do one unit of a trial.

        Raises:
            WeightsLost: If the trial was quantized elsewhere and its weights are not there any
                more, or not whole: the caller runs the `quantize` unit again.
            DeviceBusy: If somebody else holds the GPU's memory.
            DiskFull: If a file cannot be written.
            InputError: If the data of one of the trial's tasks are not at hand.
        """
        started = time.monotonic()
        self._check_data(claim.trial)
        devices.reset_peak(self._devices)
        usual = self.options.batch_size_for(str(claim.trial.model))
        batch_size = max(1, int(usual * claim.batch_scale))
        if unit.kind == "quantize":
            result = self._quantize(claim, batch_size)
        elif unit.kind == "outliers":
            result = self._outliers(claim, batch_size)
        else:
            result = self._evaluate(claim, unit, batch_size)
        return self._finished(claim, result, unit, time.monotonic() - started)

    def discard_weights(self, claim: Claim) -> None:
        """Remove the quantized weights of a trial that has succeeded: they only serve its resuming,
        unless other trials of the plan need the same."""
        if quantization_key(claim.trial) in self.options.kept:
            return
        weights = self._weights_of(claim)
        if weights is not None:
            stage = quantizing.quantized_stage(claim.trial)
            if stage is not None:
                self._stages.forget(stage)
            self._depot.remove(weights.path)

    def _check_data(self, trial: TrialSpec) -> None:
        """Refuse missing data before the GPU works in vain; each task is looked at once."""
        for task in trial.protocol.tasks:
            if task not in self._checked:
                check_task_data(task)
                self._checked.add(task)

    def _quantize(self, claim: Claim, batch_size: int) -> UnitResult:
        stage = quantizing.quantized_stage(claim.trial)
        made = None if stage is None else self._quantized_before(stage)
        if made is not None:
            with self._depot.borrow(made.weights) as path:
                if path is not None:
                    log.info("quantized before: %s", made.weights.path)
                    return self._quantized(claim, made)
        made = self._quantize_anew(claim, batch_size, stage)
        self._holds = _with_weights(claim.trial, made.weights)
        return self._quantized(claim, made)

    def _quantized_before(self, stage: Stage) -> Quantized | None:
        known = self._stages.find(stage)
        try:
            return None if known is None else Quantized.read(known)
        except FileNotFoundError:
            return None  # another worker has just made it again

    def _quantize_anew(self, claim: Claim, batch_size: int, stage: Stage | None) -> Quantized:
        trial = claim.trial
        model = self._load(trial)
        batches = self._calibration(model, trial, batch_size)
        started = time.monotonic()
        self._holds = None
        with quantizing.kept_blocks(self._depot, trial, batches, self.device_name) as blocks:
            report = quantizing.quantize(model, trial, batches, self._stages, blocks)
        seconds = time.monotonic() - started
        with files.new_file(self._depot.root / "weights", ".safetensors") as path:
            saved = weights_artifact.save(model, path)
            artifact = self._depot.keep(path, "weights", sha256=saved.sha256)
        made = Quantized(
            weights=artifact,
            modules=report.modules,
            average_bits=quantizing.average_bits(model, report),
            warnings=report.warnings,
            seconds=seconds,
        )
        if stage is not None:
            self._stages.forget(stage)
            self._stages.keep(stage, made.write)
        blocks.forget()
        return made

    def _quantized(self, claim: Claim, made: Quantized) -> UnitResult:
        self._made = (claim.trial_key, claim.attempt, made.weights)
        for warning in made.warnings:
            log.warning("%s", warning)
        bits = sum(row.bits for row in made.modules)
        return UnitResult(
            unit=Unit(kind="quantize"),
            wall_s=0.0,
            modules=made.modules,
            costs=(
                Cost(name="average_bits", value=made.average_bits, unit="bit"),
                Cost(name="quantized_weight_bytes", value=bits / 8, unit="B"),
                Cost(name="quantize_s", value=made.seconds, unit="s"),
            ),
            artifacts=(made.weights,),
            warnings=made.warnings,
        )

    def _calibration(
        self, model: DiffusionModel, trial: TrialSpec, batch_size: int
    ) -> tuple[CalibrationBatch, ...]:
        text = trial.calibration
        if text is None:
            return ()
        return shared.calibration_batches(
            self._stages, model, trial.model, text, batch_size, _log_writing
        )

    def _outliers(self, claim: Claim, batch_size: int) -> UnitResult:
        model = self._ready(claim)
        rows = outliers(model, spec=claim.trial.protocol.outliers, batch_size=batch_size)
        return UnitResult(unit=Unit(kind="outliers"), wall_s=0.0, outliers=rows)

    def _evaluate(self, claim: Claim, unit: Unit, batch_size: int) -> UnitResult:
        model = self._ready(claim)
        trial = claim.trial
        task = trial.protocol.task(unit.task)
        scored = evaluate_task(
            model,
            task,
            trial.protocol.decoding_of(task),
            seed=trial.seed,
            batch_size=batch_size,
            unit=unit,
            chat_template=trial.protocol.chat_template,
        )
        with files.new_file(self._depot.root / "samples", ".parquet") as path:
            samples.write(scored.samples, path, samples.describe(claim, unit))
            artifact = self._depot.keep(path, "samples")
        return UnitResult(unit=unit, wall_s=0.0, metrics=scored.metrics, artifacts=(artifact,))

    def _load(self, trial: TrialSpec) -> DiffusionModel:
        """The trial's model in full precision, loaded if the one at hand was quantized."""
        name, dtype = str(trial.model), trial.protocol.dtype
        wanted = _full_precision(trial)
        if self._model is None or self._holds != wanted:
            self._model, self._holds = None, None  # frees the old one first
            self.worn_out = devices.give_back(self._devices)
            devices.refuse_busy(self._devices, weight_bytes(name, dtype=dtype))
            log.info("loading %s", wanted)
            self._model = load_model(
                name, device=self._devices, dtype=dtype, family=trial.model.family
            )
            self._holds = wanted
        return self._model

    def _ready(self, claim: Claim) -> DiffusionModel:
        """The trial's model as it is to be measured."""
        if claim.trial.is_baseline:
            return self._load(claim.trial)
        weights = self._weights_of(claim)
        if weights is None:
            raise _lost(claim)
        if self._model is not None and self._holds == _with_weights(claim.trial, weights):
            return self._model
        return self._restore(claim, weights)

    def _weights_of(self, claim: Claim) -> Artifact | None:
        """What this process quantized under the claim's attempt, else what the claim names."""
        if self._made is not None and self._made[:2] == (claim.trial_key, claim.attempt):
            return self._made[2]
        return claim.weights

    def _restore(self, claim: Claim, weights: Artifact) -> DiffusionModel:
        with self._depot.borrow(weights) as path:
            if path is None:
                raise _lost(claim)
            log.info("restoring quantized weights %s", weights.path)
            model = self._load(claim.trial)
            self._holds = None
            weights_artifact.load(model, path)
        self._holds = _with_weights(claim.trial, weights)
        return model

    def _finished(self, claim: Claim, result: UnitResult, unit: Unit, wall_s: float) -> UnitResult:
        costs, peak = result.costs, devices.peak_bytes(self._devices)
        if peak is not None:
            costs = (*costs, Cost(name=f"peak_gpu_bytes:{unit.key}", value=float(peak), unit="B"))
        weights = None if claim.trial.is_baseline else self._weights_of(claim)
        return replace(
            result,
            unit=unit,
            wall_s=wall_s,
            costs=costs,
            weights_sha256=None if weights is None else weights.sha256,
        )


def _full_precision(trial: TrialSpec) -> str:
    return f"{trial.model} in {trial.protocol.dtype}"


def _with_weights(trial: TrialSpec, weights: Artifact) -> str:
    return f"{_full_precision(trial)} with {weights.sha256}"


def _lost(claim: Claim) -> WeightsLost:
    return WeightsLost(f"the quantized weights of {claim.label} are not there")


def _log_writing(done: int, total: int) -> None:
    log.info("calibration: the model has written %d of %d", done, total)
