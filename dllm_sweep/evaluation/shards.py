"""Running a part of a task's items as if all of them ran: same numbers, prompts and seeds.

lm-eval's own choice of samples numbers the chosen items anew and draws other examples for their
prompts; here the whole task is prepared, and then only a part of it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from dllm_sweep.errors import InputError
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally


def items_of(task: Any, limit: int | None) -> int:
    """Count the items of a loaded task that are evaluated."""
    count = len(task.eval_docs)
    return count if limit is None else min(limit, count)


def keep_shard(loaded: Mapping[str, Any], unit: Unit, limit: int | None) -> None:
    """Let a loaded task ask only the items of one shard: a contiguous range of them.

    Args:
        loaded: What `load_tasks` gave.
        unit: Says which shard of how many.
        limit: Only the first `limit` items count.

    Raises:
        InputError: If the task is a group, or has fewer items than shards.
    """
    if unit.shards == 1:
        return
    if loaded["groups"] or len(loaded["tasks"]) != 1:
        raise InputError(f"task {unit.task!r} is a group: it cannot be cut into shards")
    (task,) = loaded["tasks"].values()
    items = items_of(task, limit)
    if items < unit.shards:
        raise InputError(
            f"task {unit.task!r} has {items} items: it cannot be cut into {unit.shards} shards"
        )
    start, stop = (items * (unit.shard + step) // unit.shards for step in (0, 1))
    _keep(task, range(start, stop))


def tallies(logged: Sequence[Mapping[str, Any]], task: Any) -> dict[str, Tally]:
    """Sum up the item scores of every metric whose value is their mean.

    Args:
        logged: What lm-eval logged of the task's items, one for each item and filter.
        task: The loaded task, which knows how its metrics are aggregated.

    Returns:
        Sums by lm-eval's key of the metric, such as `acc,none`; a metric of another kind, or with
        a score that is no finite number, has none.
    """
    scores: dict[str, list[Any]] = {}
    for one in logged:
        for metric in one["metrics"]:
            scores.setdefault(f"{metric},{one['filter']}", []).append(one[metric])
    found = {key: _tally(values) for key, values in scores.items() if _is_mean(task, key)}
    return {key: tally for key, tally in found.items() if tally is not None}


def _is_mean(task: Any, key: str) -> bool:
    from lm_eval.api.metrics import mean

    # Like lm-eval, take the mean where the task does not say.
    return task.aggregation().get(key.partition(",")[0], mean) is mean


def _tally(values: Sequence[Any]) -> Tally | None:
    if not all(isinstance(value, Real) for value in values):
        return None
    try:
        return Tally.of(float(value) for value in values)
    except ValueError:
        return None


def _keep(task: Any, chosen: range) -> None:
    build, iterate = task.build_all_requests, task.doc_iterator

    def build_chosen(**options: Any) -> None:
        # All of them, since the examples in prompts are drawn in the order of the items.
        task.doc_iterator = iterate
        build(**options)
        task._instances = [one for one in task.instances if one.doc_id in chosen]
        task.doc_iterator = iterate_chosen

    def iterate_chosen(**options: Any) -> Iterator[tuple[int, Any]]:
        return (pair for pair in iterate(**options) if pair[0] in chosen)

    task.build_all_requests = build_chosen
