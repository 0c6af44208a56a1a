"""One task, one model: scores with their standard errors, and every answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.shards import keep_shard, tallies
from dllm_sweep.evaluation.tasks import load_tasks
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.records import Metric
from dllm_sweep.spec import DecodingSpec, TaskSpec, Unit
from dllm_sweep.tally import Tally

_BOOTSTRAP_ITERATIONS = 1000
"""For metrics that are no means; the standard error of a mean is computed in closed form."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What became of one item of a task.

    Attributes:
        task: The task; for a group, its member.
        doc_id: The item's number in the task's data, from 0.
        prompt: What the model was given.
        target: The right answer as the task states it.
        answer: What the model wrote, or the choice it found likeliest.
        log_likelihoods: Of each choice in nats; empty for generation.
        score: The primary metric's value for this item; None if it is no number.
    """

    task: str
    doc_id: int
    prompt: str
    target: str
    answer: str
    log_likelihoods: tuple[float, ...]
    score: float | None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """All that the evaluation of one task gave.

    Attributes:
        metrics: Its metrics, the primary one first.
        samples: One for each item, in the order of the data.
    """

    metrics: tuple[Metric, ...]
    samples: tuple[Sample, ...]


def evaluate_task(
    model: DiffusionModel,
    task: TaskSpec,
    decoding: DecodingSpec,
    *,
    seed: int,
    batch_size: int | None,
    unit: Unit | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TaskResult:
    """Score a model on one task, or on one shard of it.

    A metric that is the mean of its items' scores carries their exact sums: the sums of all shards
    give the very bits of the uncut task.

    Args:
        model: The model, quantized or not.
        task: The task, its shots, limit and draws.
        decoding: How text is generated.
        seed: Seed of Monte-Carlo masks and of sampling.
        batch_size: Rows in a batch; None is as many as fit.
        unit: Which shard of the task; None is all of it.
        progress: Called with (requests done, requests in all).

    Raises:
        UnknownName: If there is no such task.
        InputError: If the task cannot be loaded or cut, or asks for what the model cannot do.
    """
    from lm_eval.evaluator import evaluate

    from dllm_sweep.evaluation.lm import DiffusionLM

    unit = unit or Unit(kind="evaluate", task=task.name)
    loaded = load_tasks(task)
    keep_shard(loaded, unit, task.limit)
    lm = DiffusionLM(
        model, decoding, draws=task.draws, seed=seed, batch_size=batch_size, progress=progress
    )
    with _quiet():
        results = evaluate(
            lm,
            loaded,
            limit=task.limit,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=True,
            # The package's code tasks run in the sandbox; naming another one is consent.
            confirm_run_unsafe_code=True,
        )
    sums = _sums(results, loaded, task.name)
    metrics = _metrics(results, task.name, _primary_metric(loaded, task.name), sums)
    _refuse_cut(metrics, unit)
    samples = [
        sample
        for name in loaded["tasks"]
        for sample in _samples(results["samples"][name], name, metrics[0].name)
    ]
    return TaskResult(metrics=metrics, samples=tuple(samples))


def _primary_metric(loaded: Mapping[str, Any], name: str) -> str | None:
    """Name the metric that the task's `metadata: {primary_metric: ...}` asks for, if any."""
    source = loaded["groups"].get(name) or loaded["tasks"].get(name)
    config = getattr(source, "config", None)
    metadata = getattr(config, "metadata", None)
    return metadata.get("primary_metric") if isinstance(metadata, dict) else None


def _sums(results: Mapping[str, Any], loaded: Mapping[str, Any], name: str) -> dict[str, Tally]:
    """Exact sums by lm-eval's keys; a group's score is no mean of items, so it has none."""
    if name in loaded["groups"] or name not in loaded["tasks"]:
        return {}
    return tallies(results["samples"][name], loaded["tasks"][name])


def _refuse_cut(metrics: tuple[Metric, ...], unit: Unit) -> None:
    # A score that is no number makes the whole task's score none, too, however it is cut.
    whole = [m.name for m in metrics if m.tally is None and math.isfinite(m.value)]
    if unit.shards > 1 and whole:
        raise InputError(
            f"task {unit.task!r} cannot be cut into shards: {', '.join(whole)} is no mean of"
            " its items' scores"
        )


def _metrics(
    results: Mapping[str, Any],
    name: str,
    primary: str | None,
    sums: Mapping[str, Tally] | None = None,
) -> tuple[Metric, ...]:
    sums = sums or {}
    scores = results["results"].get(name, {})
    keys = [key for key in scores if "," in key and not _is_stderr(key)]
    if not keys:
        raise InputError(f"task {name!r} is a group without a score of its own: name its tasks")
    chosen = next((key for key in keys if primary in (key, _metric_name(key, keys))), keys[0])
    members = results["group_subtasks"].get(name) or [name]
    items = _count_items(results, members)
    better = results["higher_is_better"].get(name) or {}
    return tuple(
        _summed(
            Metric(
                task=name,
                name=_metric_name(key, keys),
                value=float(scores[key]),
                stderr=_stderr(scores, key),
                n=items,
                higher_is_better=better.get(key.partition(",")[0]) is not False,
                primary=key == chosen,
            ),
            sums.get(key),
        )
        for key in sorted(keys, key=lambda key: key != chosen)
    )


def _summed(metric: Metric, tally: Tally | None) -> Metric:
    """The metric as its exact sums give it, so that cut and uncut tasks agree to the last bit."""
    if tally is None:
        return metric
    return replace(metric, value=tally.mean, stderr=tally.stderr, n=tally.n, tally=tally)


def _metric_name(key: str, keys: list[str]) -> str:
    """Drop the filter from `exact_match,strict-match` where the metric has only that one."""
    metric = key.partition(",")[0]
    same = [other for other in keys if other.partition(",")[0] == metric]
    return metric if len(same) == 1 else key


def _is_stderr(key: str) -> bool:
    return key.partition(",")[0].endswith("_stderr")


def _stderr(scores: Mapping[str, Any], key: str) -> float | None:
    metric, _, filtered = key.partition(",")
    value = scores.get(f"{metric}_stderr,{filtered}")
    # lm-eval writes "N/A" where it has none, as for a single item.
    return float(value) if isinstance(value, Real) and math.isfinite(value) else None


def _count_items(results: Mapping[str, Any], members: list[str]) -> int:
    nested = results["group_subtasks"]
    counts = results["n-samples"]
    return sum(
        counts[member]["effective"]
        if member in counts
        else _count_items(results, nested.get(member, []))
        for member in members
    )


def _samples(logged: list[dict[str, Any]], task: str, primary: str) -> Iterator[Sample]:
    metric, _, filtered = primary.partition(",")
    wanted = filtered or next(one["filter"] for one in logged if metric in one["metrics"])
    for one in logged:
        if one["filter"] == wanted:
            yield _sample(one, task, one.get(metric))


def _sample(one: Mapping[str, Any], task: str, score: object) -> Sample:
    likelihoods: tuple[float, ...] = ()
    answer = one["resps"][0][0]
    if isinstance(answer, tuple):
        likelihoods = tuple(float(value) for value, _ in one["filtered_resps"])
        answer = one["arguments"][likelihoods.index(max(likelihoods))][1]
    return Sample(
        task=task,
        doc_id=int(one["doc_id"]),
        prompt=str(one["arguments"][0][0]),
        target=str(one["target"]),
        answer=str(answer),
        log_likelihoods=likelihoods,
        score=float(score) if isinstance(score, Real) else None,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's progress bar and its notes out of the worker's log; errors stay."""
    from lm_eval.api import task as module

    log, bar = logging.getLogger("lm_eval"), module.tqdm
    level = log.level
    log.setLevel(logging.ERROR)
    module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        log.setLevel(level)
        module.tqdm = bar
