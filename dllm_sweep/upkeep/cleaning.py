"""`gc`: which files and logs nobody needs any more, and deleting them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dllm_sweep.db import upkeep
from dllm_sweep.records import TrialState
from dllm_sweep.sharing import quantization_key
from dllm_sweep.upkeep.folders import Folder, StoredFile

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.db.upkeep import NamedFile, TrialEnd

DAY_S = 86400.0
YOUNG_S = 3600.0
"""Younger files are left alone: the row that names a new file is written after the file."""
_LOG_FOLDER = re.compile(r"logs/(\d+)-([0-9a-f]+)/")


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How long what is not needed is kept, in seconds; None is for ever.

    Attributes:
        logs: Logs of trials that succeeded, since their end.
        weights: Quantized weights of trials that failed or were cancelled: `retry` goes on from
            them. Those of trials that succeeded are not kept at all.
        samples: Answers to the items of trials that ended.
        stages: Work shared between trials, since it was made.
        temporary: Files that were never finished.
    """

    logs: float | None = 30 * DAY_S
    weights: float | None = 7 * DAY_S
    samples: float | None = None
    stages: float | None = 30 * DAY_S
    temporary: float = DAY_S


@dataclass(frozen=True)
class Waste:
    """A file that can go, and why."""

    file: StoredFile
    why: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What can go.

    Attributes:
        waste: Files.
        log_trials: Trials whose log in the store can go.
        log_rows: Number of its pieces.
        log_bytes: Their size.
        orphans_kept: Files that no row names but that may belong to another store.
    """

    waste: tuple[Waste, ...]
    log_trials: tuple[int, ...]
    log_rows: int
    log_bytes: int
    orphans_kept: int


@dataclass(frozen=True)
class Facts:
    """What the store says about files.

    Attributes:
        named: Rows by the path that they name.
        ends: Trials by number.
        lending: Keys of ended trials whose weights serve one that waits or runs.
    """

    named: Mapping[str, Sequence[NamedFile]]
    ends: Mapping[int, TrialEnd]
    lending: frozenset[str]

    @classmethod
    def read(cls, store: SqlStore) -> Facts:
        """Ask the store."""
        named: dict[str, list[NamedFile]] = {}
        for row in upkeep.named_files(store):
            named.setdefault(row.path, []).append(row)
        ends = {trial.id: trial for trial in upkeep.trial_ends(store)}
        return cls(named, ends, _lending(store))


def _lending(store: SqlStore) -> frozenset[str]:
    """Trials with equal weights quantize once: the next one takes the file of the last."""
    asked = {quantization_key(spec) for spec in upkeep.specs(store, are_open=True).values()}
    lenders = upkeep.specs(store, are_open=False) if asked - {None} else {}
    return frozenset(
        key for key, spec in lenders.items() if quantization_key(spec) in asked - {None}
    )


def examine(facts: Facts, files: Iterable[StoredFile], ages: Ages, *, orphans: bool) -> Findings:
    """Say what can go; nothing is touched.

    Args:
        facts: What the store says.
        files: What lies in its folders. List them after reading the facts: a file that is written
            in between is young, and so is left alone.
        ages: How long things are kept.
        orphans: Whether files that no row names can go; not if other stores share the folder.
    """
    waste = []
    kept = 0
    for file in files:
        why = _why(file, facts, ages)
        if why == ORPHAN and not orphans:
            kept += 1
        elif why is not None:
            waste.append(Waste(file, why))
    old = [trial for trial in facts.ends.values() if _log_is_old(trial, ages) and trial.log_rows]
    return Findings(
        waste=tuple(waste),
        log_trials=tuple(trial.id for trial in old),
        log_rows=sum(trial.log_rows for trial in old),
        log_bytes=sum(trial.log_bytes for trial in old),
        orphans_kept=kept,
    )


ORPHAN = "no row names it"


def _why(file: StoredFile, facts: Facts, ages: Ages) -> str | None:
    """Why a file can go; None if it stays."""
    if file.age_s < YOUNG_S:
        return None
    if file.is_temporary:
        return "never finished" if file.age_s > ages.temporary else None
    if file.kind == "logs":
        return _why_log(file, facts, ages)
    if file.kind == "stages":
        return "shared work, old" if _older(file.age_s, ages.stages) else None
    if not file.has_digest:
        return None
    rows = facts.named.get(file.path, ())
    if not any(not row.removed for row in rows):
        return ORPHAN
    reasons = [_why_row(row, facts, ages) for row in rows if not row.removed]
    return None if None in reasons else reasons[0]


def _why_row(row: NamedFile, facts: Facts, ages: Ages) -> str | None:
    """Why one row does not need its file; None if it does."""
    if not row.current:
        return "superseded"
    if row.ended_ago_s is None:
        return None
    if row.kind == "samples":
        return "samples, old" if _older(row.ended_ago_s, ages.samples) else None
    if row.kind != "weights" or row.trial_key in facts.lending:
        return None
    if row.state is TrialState.SUCCEEDED:
        return "weights of a trial that succeeded"
    return "weights of a trial that ended" if _older(row.ended_ago_s, ages.weights) else None


def _why_log(file: StoredFile, facts: Facts, ages: Ages) -> str | None:
    match = _LOG_FOLDER.match(file.path)
    if match is None:
        return None
    trial = facts.ends.get(int(match[1]))
    if trial is None or not trial.key.startswith(match[2]):
        return ORPHAN
    return "log of a trial that succeeded" if _log_is_old(trial, ages) else None


def _log_is_old(trial: TrialEnd, ages: Ages) -> bool:
    ended = trial.ended_ago_s
    return trial.state is TrialState.SUCCEEDED and ended is not None and _older(ended, ages.logs)


def _older(age_s: float, limit_s: float | None) -> bool:
    return limit_s is not None and age_s > limit_s


def remove(store: SqlStore, findings: Findings, folders: Collection[Folder]) -> Findings:
    """Delete what was found, as far as nobody has begun to need it; returns what was deleted.

    Rows are marked before their files go: a crash in between leaves files that the next run
    deletes, never a row that names a file that is gone without saying so.

    Raises:
        StoreError: If a file cannot be deleted, or the store cannot be written.
    """
    free = upkeep.forget_files(store, {waste.file.path for waste in findings.waste})
    ages = {folder: {file.path: file.age_s for file in folder.files()} for folder in folders}
    gone = []
    for waste in findings.waste:
        # Equal content has an equal name: a worker may have written this very file again.
        age_s = ages[waste.file.folder].get(waste.file.path, 0.0)
        if waste.file.path in free and age_s >= YOUNG_S:
            waste.file.folder.remove(waste.file.path)
            gone.append(waste)
    upkeep.drop_logs(store, findings.log_trials)
    return Findings(
        waste=tuple(gone),
        log_trials=findings.log_trials,
        log_rows=findings.log_rows,
        log_bytes=findings.log_bytes,
        orphans_kept=findings.orphans_kept,
    )
