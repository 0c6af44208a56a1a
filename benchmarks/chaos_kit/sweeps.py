"""The sweeps of a campaign: what is planned, and what its results must be."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from chaos_kit.bench import DRIFT, RULES, ChaosBench
from dllm_sweep.db.connect import open_store
from dllm_sweep.process import this_process
from dllm_sweep.records import HostInfo, PlannedTrial, PlannedUnit
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.workers.messages import WorkerOptions

SOURCE = "resources: {gpus: 0, cpus: 1}\n"
TASKS = ("hard", "long", "short")
SHARDS = {"hard": 1, "long": 4, "short": 1}
RESULTS = (
    "SELECT sweep, trial_key, model, method, scheme, state, task, metric, value, value_flag,"
    " stderr, n, higher_is_better, is_primary FROM results WHERE sweep = '{}'"
)


def planned(seed: int, trials: int, drifting: int) -> tuple[PlannedTrial, ...]:
    """A baseline and its trials, each of a method of its own; `drifting` ones are never the same.

    Trials of one method share a circuit breaker, which would hold back what was not hurt.
    """
    methods = ["fp", *(f"steady-{n}" for n in range(trials - drifting)), *[DRIFT] * drifting]
    return tuple(_trial(method, seed + index) for index, method in enumerate(methods))


def _trial(method: str, seed: int) -> PlannedTrial:
    baseline = method == "fp"
    spec = TrialSpec(
        model=ModelRef(name="toy", digest="0" * 64),
        method=method,
        scheme=FULL_PRECISION if baseline else QuantScheme.parse("w4a16-g128"),
        protocol=ProtocolSpec(tasks=tuple(TaskSpec(name=name) for name in TASKS)),
        seed=seed,
    )
    units = tuple(cut for unit in spec.units() for cut in _cut(unit))
    return PlannedTrial(
        spec=spec,
        label=f"{method} {seed}",
        estimated_s=float(len(units)),
        priority=100 if baseline else 0,
        units=tuple(PlannedUnit(unit=unit, estimated_s=1.0) for unit in units),
    )


def _cut(unit: Unit) -> Sequence[Unit]:
    shards = SHARDS.get(unit.task, 1)
    if unit.kind != "evaluate":
        return [unit]
    return [Unit(kind=unit.kind, task=unit.task, shard=n, shards=shards) for n in range(shards)]


def undisturbed(sweep: str, trials: Sequence[PlannedTrial]) -> list[tuple[object, ...]]:
    """What the view `results` holds after one quiet process did all steady trials, unit by unit."""
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "calm.db")
        row = store.plan_sweep(sweep, SOURCE, trials)
        lease = store.take_lease(sweep, this_process(), seconds=3600.0)
        here = HostInfo(host="calm", pid=0, device="cpu")
        bench = ChaosBench(WorkerOptions(files=Path(folder), device="cpu", threads=1, batch_size=1))
        for trial in store.trials(row.id):
            claim = store.claim(lease, trial.id, uuid.uuid4().hex, here)
            for unit in claim.units if claim is not None else ():
                with contextlib.redirect_stdout(None):
                    result = bench.run(claim, unit)
                store.commit_unit(claim, result)
        rows = store.query(RESULTS.format(sweep)).rows
        store.close()
    return steady(rows)


def steady(rows: Sequence[Sequence[object]]) -> list[tuple[object, ...]]:
    """Rows of trials whose numbers follow from their keys, in a fixed order."""
    return sorted((tuple(row) for row in rows if row[3] != DRIFT), key=str)


class Rules:
    """What goes wrong in which unit: files that the workers read.

    Args:
        folder: The run's folder for files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / RULES
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rules: dict[str, list[dict[str, object]]] = {}

    def pace(self, trials: Sequence[PlannedTrial], dice: random.Random) -> None:
        """Give every trial's units a length in seconds."""
        for trial in trials:
            self._seconds = round(dice.uniform(0.05, 0.2), 3)
            self._write(trial.spec.key, self._seconds)

    def add(self, key: str, rule: dict[str, object]) -> None:
        """Let something go wrong in a trial."""
        self._rules.setdefault(key, []).append(rule)
        self._write(key, 0.1)

    def lift(self, key: str) -> None:
        """Let nothing go wrong in a trial any more."""
        self._rules.pop(key, None)
        self._write(key, 0.05)

    def poisoned(self) -> list[str]:
        """Keys of trials in which something goes wrong every time."""
        return [key for key, rules in self._rules.items() if any(not r["once"] for r in rules)]

    def _write(self, key: str, seconds: float) -> None:
        text = json.dumps({"seconds": seconds, "rules": self._rules.get(key, [])})
        path = self._folder / f"{key}.json"
        new = path.with_suffix(f".{uuid.uuid4().hex}")
        new.write_text(text)
        new.replace(path)
