"""What a round did, unit by unit, and whether its results are what they must be."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from fake_bench import BEGUN

from chaos_kit.bench import DRIFT, FIRED, ITEMS, drift_score
from chaos_kit.site import Database
from chaos_kit.sweeps import RESULTS, TASKS, steady
from dllm_sweep.records import PlannedTrial
from dllm_sweep.tally import Tally

_SLACK_S = 12.0
"""A fault may be felt this much later: a fenced worker notices at its next beat or commit."""


@dataclass(frozen=True)
class Execution:
    """One time that a worker began a unit."""

    trial: int
    attempt: int
    unit: str
    pid: int
    at_s: float


@dataclass
class Account:
    """The sums of one round or of several.

    Attributes:
        units: Units of all trials.
        executed: Times that a unit was begun.
        redone: Executions beyond one for each unit.
        in_flight: Redone units whose lost execution was in flight at a fault.
        remade: Times that weights were made again since their file was harmed.
        superseded: Units that were measured again because their weights were made anew.
        lost: Results that are missing.
        doubled: Results that are there twice.
        mixed: Trials whose results belong to different weights.
        different: Results that are not, bit for bit, those of the undisturbed run.
        wrong: What else must not be, in words.
    """

    units: int = 0
    executed: int = 0
    redone: int = 0
    in_flight: int = 0
    remade: int = 0
    superseded: int = 0
    lost: int = 0
    doubled: int = 0
    mixed: int = 0
    different: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Account) -> None:
        """Add another round's."""
        for name in vars(other):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def holds(self) -> bool:
        """Whether everything is as promised."""
        nothing = (self.lost, self.doubled, self.mixed, self.different)
        return not any(nothing) and not self.wrong and self.redone == self.in_flight


def account(
    database: Database,
    files: Path,
    sweep: str,
    trials: Sequence[PlannedTrial],
    expected: Sequence[tuple[object, ...]],
    moments: Sequence[float],
    harmed: Set[int],
) -> Account:
    """Compare what a round left behind with what it should have.

    Args:
        database: The store's.
        files: The folder for files.
        sweep: The round's.
        trials: What was planned.
        expected: Results of the steady trials, undisturbed.
        moments: When faults were done from outside.
        harmed: Trials whose weights were harmed on the disk.
    """
    found = Account(units=sum(len(trial.units) for trial in trials))
    _check_results(found, database, sweep, trials, expected)
    _check_drift(found, database, sweep)
    _check_work(found, database, files, sweep, moments, harmed)
    return found


def _check_results(
    found: Account,
    database: Database,
    sweep: str,
    trials: Sequence[PlannedTrial],
    expected: Sequence[tuple[object, ...]],
) -> None:
    rows = database.read(RESULTS.format(sweep)) or []
    places = Counter((row[1], row[6], row[7]) for row in rows)
    wanted = {(trial.spec.key, task, "acc") for trial in trials for task in TASKS}
    found.lost = len(wanted - places.keys())
    found.doubled = sum(count - 1 for count in places.values()) + len(places.keys() - wanted)
    as_python = [tuple(_plain(value) for value in row) for row in rows]
    calm = [tuple(_plain(value) for value in row) for row in expected]
    found.different = len(set(calm) ^ set(steady(as_python)))


def _plain(value: object) -> object:
    """SQLite has no truth values: it keeps numbers."""
    return int(value) if isinstance(value, bool) else value


def _check_drift(found: Account, database: Database, sweep: str) -> None:
    rows = database.read(
        "SELECT t.id, t.weights_sha256, m.task, m.value, m.n FROM metric m"
        " JOIN trial t ON t.id = m.trial_id AND t.generation = m.generation"
        f" JOIN sweep s ON s.id = t.sweep_id WHERE s.name = '{sweep}' AND t.method = '{DRIFT}'"
    )
    mixed = {
        trial
        for trial, weights, task, value, n in rows or ()
        if value != Tally.of([drift_score(weights, task, i) for i in range(ITEMS)]).mean
        or n != ITEMS
    }
    found.mixed = len(mixed)


def _check_work(
    found: Account,
    database: Database,
    files: Path,
    sweep: str,
    moments: Sequence[float],
    harmed: Set[int],
) -> None:
    ids, committed = _committed(database, sweep)
    done = _executions(files, ids)
    faults = sorted([*moments, *_fired(files)])
    found.executed = len(done)
    good: set[Execution] = set()
    for key, done_s in committed.items():
        mine = [e for e in done if (e.trial, e.unit, e.attempt) == key and e.at_s <= done_s + 0.5]
        good |= set(mine[-1:])
    found.superseded = len(good) - found.units if len(good) > found.units else 0
    ends = _ends(done)
    for execution in done:
        if execution in good:
            continue
        if execution.unit == "quantize" and execution.trial in harmed:
            found.remade += 1
            continue
        found.redone += 1
        begun, end = execution.at_s - _SLACK_S, ends[execution] + 1.0
        if any(begun <= moment <= end for moment in faults):
            found.in_flight += 1
        else:
            found.wrong.append(f"{execution} was redone without a fault")


def _committed(
    database: Database, sweep: str
) -> tuple[set[int], dict[tuple[int, str, int], float]]:
    rows = database.read(
        "SELECT u.trial_id, u.unit_key, u.attempt, u.done_s FROM unit u JOIN trial t ON"
        " t.id = u.trial_id JOIN sweep s ON s.id = t.sweep_id"
        f" WHERE s.name = '{sweep}' AND u.state = 'DONE'"
    )
    found = {(trial, unit, attempt): done_s for trial, unit, attempt, done_s in rows or ()}
    return {trial for trial, _, _ in found}, found


def _executions(files: Path, trials: set[int]) -> list[Execution]:
    found = []
    for path in (files / BEGUN).iterdir():
        trial, attempt, *unit, pid, _ = path.name.split(".")
        if int(trial) in trials:
            key = ".".join(unit)
            # The mark's name cannot hold the slash of a shard's key.
            if key.count(":") == 2:
                head, _, shard = key.rpartition(":")
                key = f"{head}:{shard.replace('-', '/')}"
            at_s = path.stat().st_mtime
            found.append(Execution(int(trial), int(attempt), key, int(pid), at_s))
    return sorted(found, key=lambda execution: execution.at_s)


def _ends(done: Sequence[Execution]) -> dict[Execution, float]:
    """When each execution was over at the latest: as its process began the next one."""
    by_process: dict[int, list[Execution]] = defaultdict(list)
    for execution in done:
        by_process[execution.pid].append(execution)
    ends = {}
    for mine in by_process.values():
        for execution, following in zip(mine, [*mine[1:], None], strict=True):
            ends[execution] = following.at_s if following else execution.at_s + _SLACK_S
    return ends


def _fired(files: Path) -> list[float]:
    folder = files / FIRED
    return [path.stat().st_mtime for path in folder.iterdir()] if folder.is_dir() else []
