"""One task, one model: scores with their standard errors, and every answer."""

from __future__ import annotations

from collections.abc import Callable

from dllm_sweep.evaluation.sample import Sample, TaskResult
from dllm_sweep.evaluation.scoring import score_task
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec, TaskSpec, Unit

__all__ = ["Sample", "TaskResult", "evaluate_task"]


def evaluate_task(
    model: DiffusionModel,
    task: TaskSpec,
    decoding: DecodingSpec,
    *,
    seed: int,
    batch_size: int | None,
    unit: Unit | None = None,
    chat_template: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Score a model on one task, or on one shard of it.

    A metric that is the mean of its items' scores carries their exact sums: the sums of all shards
    give the very bits of the uncut task.

    Args:
        model: The model, quantized or not.
        task: The task, its shots, limit, draws and estimator.
        decoding: How text is generated.
        seed: Seed of Monte-Carlo masks and of sampling.
        batch_size: Rows in a batch; None is as many as fit.
        unit: Which shard of the task; None is all of it.
        chat_template: Whether prompts are wrapped in the model's chat template, each example a
            turn of its own.
        progress: Called with (requests done, requests in all).

    Raises:
        UnknownName: If there is no such task.
        InputError: If the task cannot be loaded or cut, or asks for what the model cannot do.
    """
    from dllm_sweep.evaluation.lm import DiffusionLM

    lm = DiffusionLM(
        model,
        decoding,
        draws=task.draws,
        estimator=task.estimator,
        chat_template=chat_template,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return score_task(lm, task, unit=unit, chat_template=chat_template)
