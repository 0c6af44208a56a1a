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

    The items of a group are those of its members, one member after another; members without an
    item in the shard are dropped from `loaded`.

    Args:
        loaded: What `load_tasks` gave.
        unit: Says which shard of how many.
        limit: Only the first `limit` items count, of each member of a group.

    Raises:
        InputError: If the task has fewer items than shards.
    """
    if unit.shards == 1:
        return
    sizes = {name: items_of(task, limit) for name, task in loaded["tasks"].items()}
    items = sum(sizes.values())
    if items < unit.shards:
        raise InputError(
            f"task {unit.task!r} has {items} items: it cannot be cut into {unit.shards} shards"
        )
    start, stop = (items * (unit.shard + step) // unit.shards for step in (0, 1))
    first = 0
    for name, size in sizes.items():
        chosen = range(max(start - first, 0), min(stop - first, size))
        first += size
        if chosen:
            _keep(loaded["tasks"][name], chosen)
        else:
            _drop(loaded, name)


def task_sums(
    samples: Mapping[str, Sequence[Mapping[str, Any]]], loaded: Mapping[str, Any], name: str
) -> dict[str, Tally]:
    """Sum up the item scores of a task, or of a group over the items of all its members.

    Args:
        samples: What lm-eval logged, by task.
        loaded: What `load_tasks` gave.
        name: The task or the group.

    Returns:
        Sums by lm-eval's key, as of `tallies`; of a group, those that its file weights by size.
    """
    group = loaded["groups"].get(name)
    if group is None:
        task = loaded["tasks"].get(name)
        return {} if task is None else tallies(samples[name], task)
    members = [task.task_name for task in group.get_all_tasks()]
    found = {one: tallies(samples[one], loaded["tasks"][one]) for one in members}
    logged = {key for one in members for key in _keys(samples[one])}
    sums = {key: _over_members(key, found, samples) for key in logged if _by_size(group, key)}
    return {key: tally for key, tally in sums.items() if tally is not None}


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


def _keys(logged: Sequence[Mapping[str, Any]]) -> set[str]:
    return {f"{metric},{one['filter']}" for one in logged for metric in one["metrics"]}


def _by_size(group: Any, key: str) -> bool:
    """Whether a group's score under lm-eval's key is the mean over all items."""
    metric, _, filtered = key.partition(",")
    return any(
        one.metric == metric
        and one.weight_by_size
        and one.aggregation == "mean"
        and (one.filter_list is None or filtered in one.filter_list)
        for one in group.aggregate_metric_list or ()
    )


def _over_members(
    key: str,
    found: Mapping[str, Mapping[str, Tally]],
    samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Tally | None:
    """The sum over the members that have the metric; None if one of them has it as no mean."""
    having = [name for name in found if key in _keys(samples[name])]
    if not all(key in found[name] for name in having):
        return None
    return sum((found[name][key] for name in having), Tally())


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
        if _draws_examples(task):
            # All of them, since the examples in prompts are drawn in the order of the items.
            task.doc_iterator = iterate
        build(**options)
        task._instances = [one for one in task.instances if one.doc_id in chosen]
        task.doc_iterator = iterate_chosen

    def iterate_chosen(**_: Any) -> Iterator[tuple[int, Any]]:
        items = task.eval_docs
        return ((number, items[number]) for number in chosen)

    task.build_all_requests, task.doc_iterator = build_chosen, iterate_chosen


def _draws_examples(task: Any) -> bool:
    """Whether a prompt's examples depend on the prompts that were made before it."""
    from lm_eval.api.samplers import FirstNSampler

    return bool(task.get_config("num_fewshot")) and type(task.sampler) is not FirstNSampler


def _drop(loaded: Mapping[str, Any], name: str) -> None:
    del loaded["tasks"][name]
    for group in loaded["groups"].values():
        group.pop(name)
