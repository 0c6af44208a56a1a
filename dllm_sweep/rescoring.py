"""Scores of stored answers by today's filters and metrics, beside the scores in the store."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from dllm_sweep.answers import Places, measured, read_answers, task_of
from dllm_sweep.errors import InputError, UnknownName

if TYPE_CHECKING:
    from dllm_sweep.db.reads import TrialDetail
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.evaluation.sample import Sample
    from dllm_sweep.records import Metric

_KEYS = "SELECT trial_key FROM trials WHERE sweep = ? AND units_done > 0 ORDER BY label, trial_key"


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """One metric of one task of one trial, as it was stored and as it is now.

    Attributes:
        sweep: The sweep.
        trial_key: The trial's key.
        trial: Its name for people.
        task: The task; for a group's member, the member.
        metric: The score's name; empty if the task could not be scored.
        stored: The score in the store; None if there is none.
        rescored: The score now; None if there is none.
        stored_n: Items that the stored score is over.
        n: Items that it is over now.
        items_changed: Items whose own primary score has changed; None where it is not known.
        note: Why there is no score.
    """

    sweep: str
    trial_key: str
    trial: str
    task: str
    metric: str = ""
    stored: float | None = None
    rescored: float | None = None
    stored_n: int = 0
    n: int = 0
    items_changed: int | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """The score now minus the stored one; None if one of them is missing."""
        if self.stored is None or self.rescored is None:
            return None
        return self.rescored - self.stored

    @property
    def differs(self) -> bool:
        """Whether the stored score is not what today's task gives."""
        if self.note:
            return True
        same = _same(self.stored, self.rescored) and self.stored_n == self.n
        return not same or bool(self.items_changed)


def targets(store: SqlStore, name: str) -> tuple[TrialDetail, ...]:
    """The trials of a sweep that have results, or the one trial whose key starts so.

    Raises:
        InputError: If it is neither.
    """
    try:
        sweep = store.sweep(name).name
    except UnknownName as unknown:
        try:
            return (store.trial_detail(name),)
        except InputError as error:
            raise InputError(f"{error}; {unknown}") from error
    keys = [row[0] for row in store.query(_KEYS, [sweep]).rows]
    return tuple(store.trial_detail(key, sweep) for key in keys)


def rescore(
    detail: TrialDetail, places: Places, task: str | None = None, *, data: str | None = None
) -> Iterator[Rescored]:
    """Score a trial's stored answers anew; no model and no GPU are used.

    Args:
        detail: The trial.
        places: Where its files may be.
        task: Only this task; None is all that are wholly evaluated.
        data: Where data lie that were in a local folder; None is where they were then.

    Raises:
        UnknownName: If the trial has no such task.
        InputError: If lm-eval is not installed.
    """
    if find_spec("lm_eval") is None:
        raise InputError("scoring needs lm-eval: pip install 'dllm-sweep[worker]'")
    for name in measured(detail) if task is None else (task_of(detail, task),):
        try:
            samples = read_answers(detail, name, places)
            yield from _rescored(detail, name, samples, data)
        except InputError as error:
            yield Rescored(**_names(detail), task=name, note=str(error))


def _rescored(
    detail: TrialDetail, task: str, samples: Sequence[Sample], data: str | None
) -> Iterator[Rescored]:
    from dllm_sweep.evaluation.replay import rescore_task

    protocol = detail.spec.protocol
    spec = protocol.task(task)
    if data is not None and spec.data is not None:
        spec = replace(spec, data=data)
    result = rescore_task(spec, samples, chat_template=protocol.chat_template)
    changed = _changed(samples, result.samples)
    stored = _stored(detail, task)
    new = {(metric.task, metric.name): metric for metric in result.metrics}
    primary = result.metrics[0].task, result.metrics[0].name
    for key in sorted({*stored, *new}, key=lambda key: (key != primary, key)):
        yield _one(detail, key, stored.get(key), new.get(key), changed if key == primary else None)


def _one(
    detail: TrialDetail,
    key: tuple[str, str],
    stored: Mapping[str, Any] | None,
    new: Metric | None,
    changed: int | None,
) -> Rescored:
    return Rescored(
        **_names(detail),
        task=key[0],
        metric=key[1],
        stored=None if stored is None else _value(stored),
        rescored=None if new is None else new.value,
        stored_n=0 if stored is None else stored["n"],
        n=0 if new is None else new.n,
        items_changed=changed,
    )


def _stored(detail: TrialDetail, task: str) -> dict[tuple[str, str], dict[str, Any]]:
    keys = {unit["unit_key"] for unit in detail.units.dicts() if unit["task"] == task}
    rows = (row for row in detail.metrics.dicts() if row["unit_key"] in keys)
    return {(row["task"], row["name"]): row for row in rows}


def _value(row: Mapping[str, Any]) -> float | None:
    return float(row["value_flag"]) if row["value_flag"] else row["value"]


def _changed(old: Sequence[Sample], new: Sequence[Sample]) -> int:
    """How many items have another primary score than when they were answered."""
    known = {(one.task, one.doc_id): one.score for one in old}
    return sum(not _same(known.get((one.task, one.doc_id)), one.score) for one in new)


def _same(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is new
    return old == new or (math.isnan(old) and math.isnan(new))


def _names(detail: TrialDetail) -> dict[str, Any]:
    trial = detail.trial
    return {"sweep": trial["sweep"], "trial_key": trial["trial_key"], "trial": trial["label"]}
