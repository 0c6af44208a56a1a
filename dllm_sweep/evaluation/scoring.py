"""lm-eval's harness around anything that answers its requests: scores and samples.

The answers may come from a model or from what one has written before; nothing here needs torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.evaluation.logged import metric_name, samples_of
from dllm_sweep.evaluation.sample import TaskResult
from dllm_sweep.evaluation.shards import keep_shard, tallies, task_sums
from dllm_sweep.evaluation.tasks import load_tasks
from dllm_sweep.records import Metric
from dllm_sweep.spec import TaskSpec, Unit
from dllm_sweep.tally import Tally

_BOOTSTRAP_ITERATIONS = 1000
"""For metrics that are no means; the standard error of a mean is computed in closed form."""


def score_task(
    lm: Any, task: TaskSpec, *, unit: Unit | None = None, chat_template: bool = False
) -> TaskResult:
    """Ask all requests of a task, or of one shard of it, and score the answers.

    Args:
        lm: Answers lm-eval's requests; its `work` says what each item took.
        task: The task, its shots and limit.
        unit: Which shard of the task; None is all of it.
        chat_template: Whether prompts are wrapped by `lm.apply_chat_template`.

    Raises:
        UnknownName: If there is no such task.
        InputError: If the task cannot be loaded or cut.
    """
    from lm_eval.evaluator import evaluate

    unit = unit or Unit(kind="evaluate", task=task.name)
    loaded = load_tasks(task)
    keep_shard(loaded, unit, task.limit)
    with _quiet():
        results = evaluate(
            lm,
            loaded,
            limit=task.limit,
            bootstrap_iters=_BOOTSTRAP_ITERATIONS,
            log_samples=True,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
            # The package's code tasks run in the sandbox; naming another one is consent.
            confirm_run_unsafe_code=True,
        )
    sums = task_sums(results["samples"], loaded, task.name)
    metrics = _metrics(results, task.name, _primary_metric(loaded, task), sums)
    _refuse_unknown(task, metrics)
    _refuse_cut(metrics, unit)
    samples = [
        sample
        for name in loaded["tasks"]
        for sample in samples_of(results["samples"][name], name, metrics[0].name, lm.work)
    ]
    members = _member_metrics(results, loaded) if task.name in loaded["groups"] else ()
    named = tuple(_honest(metric, loaded) for metric in (*metrics, *members))
    return TaskResult(metrics=named, samples=tuple(samples))


def _primary_metric(loaded: Mapping[str, Any], task: TaskSpec) -> str | None:
    """The metric that the spec asks for, else the task's `metadata: {primary_metric: ...}`."""
    source = loaded["groups"].get(task.name) or loaded["tasks"].get(task.name)
    metadata = getattr(getattr(source, "config", source), "metadata", None)
    named = metadata.get("primary_metric") if isinstance(metadata, dict) else None
    return named if task.metric is None else task.metric


def _refuse_unknown(task: TaskSpec, metrics: tuple[Metric, ...]) -> None:
    names = [metric.name for metric in metrics]
    if task.metric is not None and task.metric not in names:
        raise UnknownName(f"metric of task {task.name!r}", task.metric, names)


def _member_metrics(results: Mapping[str, Any], loaded: Mapping[str, Any]) -> Iterator[Metric]:
    """What each member of a group scored by itself: they say which tasks a mean is over."""
    for name, task in loaded["tasks"].items():
        sums = tallies(results["samples"][name], task)
        for metric in _metrics(results, name, None, sums):
            yield replace(metric, primary=False)


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
    chosen = next((key for key in keys if primary in (key, metric_name(key, keys))), keys[0])
    members = results["group_subtasks"].get(name) or [name]
    items = _count_items(results, members)
    better = results["higher_is_better"].get(name) or {}
    return tuple(
        _summed(
            Metric(
                task=name,
                name=metric_name(key, keys),
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


def _honest(metric: Metric, loaded: Mapping[str, Any]) -> Metric:
    """Mark what is a bound: a diffusion model bounds a running text's likelihood from below."""
    task = loaded["tasks"].get(metric.task)
    if getattr(task, "OUTPUT_TYPE", None) != "loglikelihood_rolling":
        return metric
    stem, comma, filtered = metric.name.partition(",")
    return replace(metric, name=f"{stem}_bound{comma}{filtered}")


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
