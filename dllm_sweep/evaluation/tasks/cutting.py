"""Whether a task's scores are means over its items, so that shards of them merge exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm_sweep.evaluation.tasks.definition import find

_MEANS_BY_DEFAULT = frozenset({"generate_until", "multiple_choice"})
"""Output types whose metrics are means where the task names none."""
_MEANS = frozenset({"acc", "acc_norm", "exact_match"})
"""Metrics that lm-eval averages where the task does not say how to aggregate."""


def may_be_cut(name: str) -> bool:
    """Say, from a task's file alone, whether shards of its items merge to the whole task's scores.

    They do where every metric is the mean of the items' scores; for a group, where its own score
    is the mean over the items of all members. What cannot be told without lm-eval (other groups,
    a tag, a task in Python) is not cut.
    """
    definition = find(name, anywhere=True)
    if definition is None or not all(_is_mean_of_items(one.config) for one in definition.single):
        return False
    listed = definition.config.get("aggregate_metric_list") or [] if definition.members else []
    return all(
        one.get("weight_by_size", True) and one.get("aggregation", "mean") == "mean"
        for one in ([listed] if isinstance(listed, dict) else listed)
    )


def _is_mean_of_items(config: Mapping[str, Any]) -> bool:
    if not isinstance(config.get("task"), str):
        return False
    metrics = config.get("metric_list")
    if not metrics:
        return config.get("output_type") in _MEANS_BY_DEFAULT
    return all(one.get("aggregation", _usual(one)) == "mean" for one in metrics)


def _usual(metric: Mapping[str, Any]) -> str:
    return "mean" if metric.get("metric") in _MEANS else ""
