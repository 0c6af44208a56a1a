"""Answers to the items of a trial's tasks, read from wherever a store's files are.

Neither torch nor a worker is needed: the files are Parquet, checked against their digests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.records import Artifact
from dllm_sweep.workers.depot import Depot
from dllm_sweep.workers.files import roots

if TYPE_CHECKING:
    from dllm_sweep.db.reads import TrialDetail
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.evaluation.sample import Sample

_BASELINES = """SELECT trial_key FROM trials WHERE is_baseline AND sweep = ? AND model = ?
AND protocol_key = ? AND seed = ? ORDER BY trial_key"""


@dataclass(frozen=True)
class Places:
    """Where a store's files may be.

    Attributes:
        folders: Folders of this machine.
        urls: Folders behind URLs.
    """

    folders: tuple[Path, ...]
    urls: tuple[str, ...]

    @classmethod
    def of(cls, store: SqlStore, address: str | None, files: str | None = None) -> Places:
        """All places that a store's sweeps name.

        Args:
            store: The store.
            address: Its address, as the user named it.
            files: The only place, as the user named it; None asks the sweeps.
        """
        from dllm_sweep.stored import resolve_store
        from dllm_sweep.sweep_file import stored_files

        sources = [row[0] for row in store.query("SELECT source FROM sweep ORDER BY id").rows]
        named = [None, *map(stored_files, sources)] if files is None else [files]
        found = [roots(name, resolve_store(address)) for name in named]
        return cls(
            folders=tuple(dict.fromkeys(folder for folder, _ in found)),
            urls=tuple(dict.fromkeys(url for _, url in found if url)),
        )

    @contextmanager
    def borrow(self, artifact: Artifact) -> Iterator[Path | None]:
        """Give a path of a whole file for as long as the context lasts; None if it is nowhere.

        Raises:
            ConnectionError: If a URL cannot be reached.
        """
        with ExitStack() as stack:
            fetched = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            depots = [
                *(Depot(folder) for folder in self.folders),
                *(Depot(fetched, remote=url) for url in self.urls),
            ]
            paths = (stack.enter_context(depot.borrow(artifact)) for depot in depots)
            yield next((path for path in paths if path is not None), None)

    def __str__(self) -> str:
        return ", ".join([*map(str, self.folders), *self.urls])


def task_of(detail: TrialDetail, name: str) -> str:
    """A trial's task as it was planned: `name` is its name, or that of its file.

    Raises:
        UnknownName: If the trial has no such task.
    """
    tasks = tasks_of(detail)
    for task in tasks:
        if name in (task, Path(task).name, Path(task).stem):
            return task
    raise UnknownName("task of this trial", name, tasks)


def tasks_of(detail: TrialDetail) -> tuple[str, ...]:
    """The tasks of a trial, in the order in which they run."""
    return tuple(dict.fromkeys(unit["task"] for unit in detail.units.dicts() if unit["task"]))


def read_answers(detail: TrialDetail, task: str, places: Places) -> tuple[Sample, ...]:
    """One record for each item of a task, all of its shards together.

    Raises:
        InputError: If the task is not wholly evaluated, or its files are not in `places`.
        ConnectionError: If a URL cannot be reached.
    """
    from dllm_sweep.workers import samples

    units = [unit for unit in detail.units.dicts() if unit["task"] == task]
    waiting = [unit["unit_key"] for unit in units if unit["state"] != "DONE"]
    if waiting:
        raise InputError(f"{_name(detail)}: {waiting[0]} is not done: there are no answers yet")
    keys = {unit["unit_key"] for unit in units}
    rows = [
        row
        for row in detail.artifacts.dicts()
        if row["kind"] == "samples" and row["unit_key"] in keys
    ]
    with ExitStack() as stack:
        return samples.read([_borrow(stack, detail, row, places) for row in rows])


def baseline_of(store: SqlStore, detail: TrialDetail) -> TrialDetail | None:
    """The full-precision trial of the same sweep, model, protocol and seed; None if none is.

    A baseline has none.
    """
    if detail.spec.is_baseline:
        return None
    shown = detail.trial
    same = [shown[name] for name in ("sweep", "model", "protocol_key", "seed")]
    keys = [row[0] for row in store.query(_BASELINES, same).rows]
    found = (store.trial_detail(key, shown["sweep"]) for key in keys)
    return next((one for one in found if one.spec.model == detail.spec.model), None)


def baseline_answers(
    store: SqlStore, detail: TrialDetail, task: str, places: Places
) -> tuple[tuple[Sample, ...], str]:
    """Full precision's answers to a trial's task, and why there are none, if so."""
    baseline = baseline_of(store, detail)
    if baseline is None:
        return (), ""
    try:
        return read_answers(baseline, task, places), ""
    except InputError as error:
        return (), str(error)


def measured(detail: TrialDetail) -> tuple[str, ...]:
    """The tasks of a trial whose units are all done."""
    waiting = {unit["task"] for unit in detail.units.dicts() if unit["state"] != "DONE"}
    return tuple(task for task in tasks_of(detail) if task not in waiting)


def _borrow(stack: ExitStack, detail: TrialDetail, row: dict[str, Any], places: Places) -> Path:
    fields = {name: row[name] for name in ("kind", "path", "sha256", "bytes")}
    path = stack.enter_context(places.borrow(Artifact(**fields)))
    if path is not None:
        return path
    if row["removed_s"] is not None:
        raise InputError(f"{_name(detail)}: the answers of {row['unit_key']} were deleted by gc")
    raise InputError(
        f"{_name(detail)}: the answers of {row['unit_key']} ({row['path']}) are not in {places};"
        " name their folder with --files"
    )


def _name(detail: TrialDetail) -> str:
    return f"trial {detail.trial['trial_key'][:12]}"
