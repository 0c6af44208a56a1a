"""Own scores beside published ones as a listing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from dllm_sweep.beside_published import Comparison
from dllm_sweep.reports.listing import Listing
from dllm_sweep.reports.told_apart import axis_texts, differing_axes
from dllm_sweep.task_groups import degradation

_FULL = (
    *("sweep", "trial_key", "model", "published_model", "method", "parameters", "scheme"),
    *("calibration", "seed", "name", "tasks"),
    *("metric", "own", "own_stderr", "own_items", "published", "published_stderr"),
    *("difference", "margin", "verdict", "own_change", "published_change", "table", "note"),
)


def comparison_listing(found: Sequence[Comparison], *, full: bool) -> Listing:
    """One row for each task and each group of tasks, in percent.

    Args:
        found: The comparisons.
        full: Whether for programs: all columns, numbers as they are.
    """
    if full:
        return Listing(_FULL, tuple(tuple(_value(one, name) for name in _FULL) for one in found))
    trials = list(map(vars, found))
    axes = differing_axes(trials)
    columns = (
        *("model", "method", "scheme", *axes, "task", "own", "published", "difference", "95 %"),
        *("verdict", "change", "published change", "class", "tasks"),
    )
    return Listing(columns, tuple(map(_short, found, axis_texts(trials, axes))))


def comparison_note(found: Sequence[Comparison]) -> str:
    """Say in a few lines how many values agree, and what to know about them."""
    counts = Counter(one.verdict for one in found)
    lines = [
        f"{counts['agrees']} of {len(found)} values agree with arXiv 2508.14896 v3 within the 95 %"
        " interval of the difference; all scores and changes are in percent."
    ]
    notes = dict.fromkeys(one.note for one in found if one.note)
    return "\n".join([*lines, *(f"- {note}" for note in notes)])


def _short(one: Comparison, told: Sequence[str]) -> tuple[object, ...]:
    """One row for people; `told` tells its trial from others of the same method and scheme."""
    is_group = len(one.tasks) > 1
    scores = (f"{one.own:.2f}", f"{one.published:.2f}", f"{one.difference:+.2f}")
    return (
        *(one.model, one.method, one.scheme, *told, one.name, *scores),
        *(f"±{one.margin:.2f}", one.verdict),
        _signed(one.own_change),
        _signed(one.published_change),
        _classes(one) if is_group else "",
        ", ".join(one.tasks) if is_group else "",
    )


def _signed(change: float | None) -> str:
    return "" if change is None else f"{change:+.1f}"


def _classes(one: Comparison) -> str:
    """The class of the own loss, and the published one if it is another."""
    if one.own_change is None or one.published_change is None:
        return ""
    own, theirs = degradation(-one.own_change), degradation(-one.published_change)
    return own if own == theirs else f"{own}, published {theirs}"


def _value(one: Comparison, name: str) -> object:
    value = getattr(one, name)
    return ", ".join(value) if isinstance(value, tuple) else value
