"""What a trial will cost, from a small table: parameters x tokens x steps.

These are estimates for ordering work and for telling a person minutes from hours, made before
anything has run. What a unit really took is in the store (`unit.wall_s`).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dllm_sweep.spec import DecodingSpec, ModelRef, TaskSpec, TrialSpec, Unit

FLOP_PER_PARAMETER = 2
"""A forward pass multiplies and adds each weight once for each token."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How fast one actor is.

    Attributes:
        flop_per_s: Sustained in forward passes of batched evaluation.
        start_s: Seconds for loading a small model.
        bytes_per_s: Reading weights from disk.
    """

    flop_per_s: float
    start_s: float
    bytes_per_s: float


CPU = Machine(flop_per_s=6.5e10, start_s=1.0, bytes_per_s=1e9)
"""One of two busy cores with a model of 5 million weights, measured in examples/quickstart.yaml:
15 s for 30 items of tiny_code, 11 s for 30 of tiny_math, in 16 steps."""
GPU = Machine(flop_per_s=1.5e14, start_s=5.0, bytes_per_s=2e9)
"""A data-centre GPU in bfloat16 at a third of its peak."""

PROMPT_TOKENS = 128
"""Tokens of a prompt or of a question with one answer, when the task is not known."""
ANSWERS = 4
"""Answers to a likelihood item."""
CHOICE_MASKS = 3
"""Ways to mask a choice of two tokens: draws that look alike are computed once, for all choices."""
ITEMS = 1000
"""Items of a task without a limit."""
SOLVER_PASSES = 8
"""A method with calibration costs as much as this many forward passes over it."""
STUDY_PASSES = 6
"""Outlier statistics cost as much as this many forward passes over their text."""
UNKNOWN_PARAMETERS = 8e9
"""LLaDA-8B and Dream-7B are what people sweep."""


def machine_for(gpus: float | None) -> Machine:
    """The machine that a trial with so many GPUs runs on; None asks this one."""
    has_gpu = Path("/dev/nvidiactl").exists() if gpus is None else gpus > 0
    return GPU if has_gpu else CPU


def estimate_trial_s(trial: TrialSpec, parameters: float, machine: Machine) -> float:
    """Estimate the wall time of a whole trial on one actor, in seconds."""
    load_s = machine.start_s + 2 * parameters / machine.bytes_per_s
    return load_s + sum(estimate_unit_s(trial, unit, parameters, machine) for unit in trial.units())


def estimate_unit_s(trial: TrialSpec, unit: Unit, parameters: float, machine: Machine) -> float:
    """Estimate the wall time of one unit, in seconds."""
    return FLOP_PER_PARAMETER * parameters * _tokens(trial, unit) / machine.flop_per_s


def _tokens(trial: TrialSpec, unit: Unit) -> float:
    """Tokens that pass through the model in a unit."""
    if unit.kind == "quantize":
        text = trial.calibration
        return 0 if text is None else SOLVER_PASSES * text.samples * text.length
    if unit.kind == "outliers":
        study = trial.protocol.outliers
        if study is None:
            return 0
        sequences = study.text.samples * len(study.mask_ratios)
        return STUDY_PASSES * sequences * study.text.length
    task = next(task for task in trial.protocol.tasks if task.name == unit.task)
    return _task_tokens(task, trial.protocol.decoding)


def _task_tokens(task: TaskSpec, decoding: DecodingSpec) -> float:
    """Generating or scoring, as the task's file says; without a file the dearer of the two."""
    kind, items = _read_task(task.name)
    generation = (PROMPT_TOKENS + decoding.gen_length) * decoding.steps
    choice = PROMPT_TOKENS * min(task.draws, CHOICE_MASKS)
    unknown = max(generation, PROMPT_TOKENS * ANSWERS * task.draws)
    each = {"generate_until": generation, "multiple_choice": choice}.get(kind, unknown)
    return (min(task.limit or items, items) if kind else task.limit or items) * each


@lru_cache
def _read_task(name: str) -> tuple[str, int]:
    """What a task's file says that it does, and how many items its data has."""
    from dllm_sweep.evaluation.tasks import task_file

    path = task_file(name)
    if path is None:
        return "", ITEMS
    text = path.read_text(encoding="utf-8")
    kind = re.search(r"^output_type: *(\w+)", text, re.MULTILINE)
    data = re.search(r"^ +test: *(\S+\.jsonl)", text, re.MULTILINE)
    rows = path.parent / data[1] if data else None
    items = len(rows.read_bytes().splitlines()) if rows and rows.is_file() else ITEMS
    return kind[1] if kind else "", items


def count_parameters(ref: ModelRef) -> float:
    """Count a checkpoint's weights from the headers of its files, or guess by its name."""
    from dllm_sweep.models.locate import tensor_shapes

    shapes = tensor_shapes(ref)
    if shapes:
        return float(sum(math.prod(shape) for shape in shapes.values()))
    billions = re.search(r"(\d+(?:\.\d+)?)[bB]\b", ref.name)
    return float(billions[1]) * 1e9 if billions else UNKNOWN_PARAMETERS
