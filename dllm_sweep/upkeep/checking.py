"""`fsck`: the store's rows against each other and against the files that they name."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dllm_sweep.db import contradictions
from dllm_sweep.errors import StoreError
from dllm_sweep.records import TrialState
from dllm_sweep.upkeep.cleaning import ORPHAN, Ages, Facts, examine
from dllm_sweep.upkeep.folders import Folder, StoredFile

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore
    from dllm_sweep.db.upkeep import NamedFile

_LOST = "what the file held is lost: run the trial again in a new sweep with --fresh"
_MADE_AGAIN = "the next attempt quantizes again by itself"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that is not as it must be.

    Attributes:
        name: What is wrong.
        sweep: The sweep's name; empty if no trial is concerned.
        trial_key: The trial's key; empty if none is concerned.
        trial: Its name for people.
        detail: Which unit, task or file.
        advice: What to do.
    """

    name: str
    sweep: str = ""
    trial_key: str = ""
    trial: str = ""
    detail: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found.

    Attributes:
        problems: All of them; empty if store and files are in order.
        files: How many files were looked at.
        elsewhere: How many were not, since they are on other machines.
    """

    problems: tuple[Problem, ...]
    files: int
    elsewhere: int


def check(store: SqlStore, folders: Sequence[Folder], *, deep: bool, orphans: bool) -> Report:
    """Check everything; nothing is changed.

    What is found is looked at once more: a sweep that runs beside may have moved on between the
    looks at its rows and at its files, and what is wrong stays wrong.

    Args:
        store: The store.
        folders: Where its files are.
        deep: Whether to read every file and compare its digest, too.
        orphans: Whether files that no row names are problems.

    Raises:
        StoreError: If the store or a file cannot be read.
    """
    first = _look(store, folders, deep=deep, orphans=orphans)
    if not first.problems:
        return first
    second = _look(store, folders, deep=deep, orphans=orphans)
    stayed = set(first.problems)
    return replace(
        second, problems=tuple(problem for problem in second.problems if problem in stayed)
    )


def _look(store: SqlStore, folders: Sequence[Folder], *, deep: bool, orphans: bool) -> Report:
    facts = Facts.read(store)
    files = [file for folder in folders for file in folder.files()]
    rows = [row for rows in facts.named.values() for row in rows if _must_be_there(row)]
    found = _by_path(files)
    here = [row for row in rows if row.path in found or _belongs_here(row)]
    problems = [*_in_store(store), *_missing_folders(folders, here)]
    if not problems or any(folder.exists() for folder in folders):
        problems += _in_files(here, found, deep=deep)
    if orphans:
        problems += _orphans(facts, files)
    return Report(problems=tuple(problems), files=len(here), elsewhere=len(rows) - len(here))


def _in_store(store: SqlStore) -> Iterator[Problem]:
    for found in contradictions.find(store):
        yield Problem(
            name=found.rule.name,
            sweep=found.sweep,
            trial_key=found.trial_key,
            trial=found.label,
            detail=found.detail,
            advice=found.rule.advice,
        )


def _missing_folders(folders: Sequence[Folder], rows: Sequence[NamedFile]) -> Iterator[Problem]:
    if rows and not any(folder.exists() for folder in folders):
        yield Problem(
            name="the folder for files is missing",
            detail=f"{folders[0].name}, with {len(rows)} files",
            advice="run fsck on the machine that has it, or name it with --files",
        )


def _must_be_there(row: NamedFile) -> bool:
    """Weights serve resuming alone: a worker deletes them when their trial succeeds."""
    if row.removed or not row.current:
        return False
    return row.kind != "weights" or row.state is not TrialState.SUCCEEDED


def _belongs_here(row: NamedFile) -> bool:
    """Weights stay on the machine that made them; all else is brought to the controller's."""
    return row.kind != "weights" or row.host in ("", socket.gethostname())


def _by_path(files: Iterable[StoredFile]) -> dict[str, list[StoredFile]]:
    found: dict[str, list[StoredFile]] = {}
    for file in files:
        found.setdefault(file.path, []).append(file)
    return found


def _in_files(
    rows: Sequence[NamedFile], found: Mapping[str, Sequence[StoredFile]], *, deep: bool
) -> Iterator[Problem]:
    digests: dict[tuple[str, str], str] = {}
    for row in rows:
        copies = found.get(row.path, ())
        if not copies:
            yield _file_problem("file missing", row, row.path)
        for file in copies:
            where = f"{file.folder.name}/{file.path}"
            if file.bytes != row.bytes:
                sizes = f"{file.bytes} bytes instead of {row.bytes}"
                yield _file_problem("file of another size", row, f"{where}: {sizes}")
            elif deep and _digest(file, digests) != row.sha256:
                yield _file_problem("file with another content", row, where)


def _digest(file: StoredFile, known: dict[tuple[str, str], str]) -> str:
    place = file.folder.name, file.path
    if place not in known:
        try:
            known[place] = file.folder.sha256(file.path)
        except StoreError as error:
            known[place] = str(error)
    return known[place]


def _file_problem(name: str, row: NamedFile, detail: str) -> Problem:
    advice = _MADE_AGAIN if row.kind == "weights" else _LOST
    return Problem(
        name=name,
        sweep=row.sweep,
        trial_key=row.trial_key,
        trial=row.label,
        detail=detail,
        advice=advice,
    )


def _orphans(facts: Facts, files: Sequence[StoredFile]) -> Iterator[Problem]:
    never = Ages(logs=None, weights=None, samples=None, stages=None)
    for waste in examine(facts, files, never, orphans=True).waste:
        if waste.why == ORPHAN:
            yield Problem(
                name="file that no row names",
                detail=f"{waste.file.folder.name}/{waste.file.path}",
                advice="what a crash left over: `dllm-sweep gc` deletes it",
            )
