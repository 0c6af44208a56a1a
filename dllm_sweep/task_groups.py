"""Groups of tasks whose scores are averaged, and classes of what quantization lost.

Groups and classes are those of arXiv 2508.14896, sections 4 and 5; a mean is only ever compared
with one over the very same tasks.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

TASK_GROUPS: dict[str, tuple[str, ...]] = {
    "general": (
        *("winogrande", "piqa", "arc_challenge", "arc_easy", "hellaswag", "mmlu"),
        "tiny_facts",
    ),
    "math": ("gsm8k", "minerva_math", "tiny_math"),
    "code": ("humaneval", "mbpp", "tiny_code"),
}
"""Tasks by group: the study's ten, and the embedded ones of the same kind."""

NEGLIGIBLE_BELOW, MODERATE_TO = 1.0, 4.0
"""Limits of the classes, in percent of full precision's score."""


def plain_name(task: str) -> str:
    """A task's name without folder and ending, where it is named by its file."""
    return PurePosixPath(task).stem if task.endswith(".yaml") else task


def group_of(task: str) -> str | None:
    """The group that a task belongs to; None if to none."""
    name = plain_name(task)
    return next((group for group, tasks in TASK_GROUPS.items() if name in tasks), None)


def by_group(tasks: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Sort tasks into their groups, each sorted by name; tasks of no group are left out."""
    found: dict[str, list[str]] = {}
    for task in sorted(tasks):
        group = group_of(task)
        if group is not None:
            found.setdefault(group, []).append(task)
    return {group: tuple(found[group]) for group in TASK_GROUPS if group in found}


def degradation(drop_percent: float) -> str:
    """Class of a loss relative to full precision, in percent: negligible, moderate, significant."""
    drop = round(drop_percent, 9)
    if drop < NEGLIGIBLE_BELOW:
        return "negligible"
    return "moderate" if drop <= MODERATE_TO else "significant"
