"""The same small sweep under our controller and under Ray Tune, each on a Ray of its own, timed.

Called by `scheduling.py --real`; needs `pip install "ray[tune]"`. Work takes wall time and nothing
else: a worker waits as long as a busy GPU would keep it waiting. The same workers are killed (-9):
at fixed times after the first unit has begun, the one that has been busy longest. Tune runs each
trial as one function with `max_failures=-1`, in the order of the grid.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dllm_sweep.records import Claim, Metric, PlannedTrial, PlannedUnit, UnitResult
from dllm_sweep.reports.listing import Listing
from dllm_sweep.spec import (
    FULL_PRECISION,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.tally import Tally
from dllm_sweep.workers.messages import WorkerOptions

WORKERS = 4
LOAD_S = 0.5
QUANTIZE_S = 1.0
TASKS_S = {"a": 8.0, "b": 4.0, "c": 2.0, "d": 1.0}
SHARD_S = 2.0
KILLS_S = (8.0, 20.0, 32.0)
_SCORES = Tally.of((0.25, 0.75))
_WAIT_S = 0.2


def work(log: Path, label: str, what: str, seconds: float) -> None:
    """Be busy, and say when and where; one line each, so that writers do not mix."""
    _say(log, "begin", label, what)
    time.sleep(seconds)
    _say(log, "end", label, what)


def _say(log: Path, event: str, label: str, what: str) -> None:
    with log.open("a") as file:
        file.write(f"{event}|{os.getpid()}|{time.time()}|{label}|{what}\n")


class TimedBench:
    """Stands in the place of `Workbench` in the real actors."""

    device_name = "cpu"

    def __init__(self, options: WorkerOptions) -> None:
        self._log, self._holds = options.files / "log.txt", ""

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Take the time of a unit, and of loading if another trial was at hand."""
        load_s = 0.0 if self._holds == claim.trial_key else LOAD_S
        self._holds = claim.trial_key
        seconds = QUANTIZE_S if unit.kind == "quantize" else TASKS_S[unit.task] / unit.shards
        work(self._log, claim.label, unit.key, load_s + seconds)
        metrics: tuple[Metric, ...] = ()
        if unit.task:
            value, n = _SCORES.mean, _SCORES.n
            metrics = (
                Metric(task=unit.task, name="acc", value=value, stderr=None, n=n, tally=_SCORES),
            )
        return UnitResult(unit=unit, wall_s=load_s + seconds, metrics=metrics)

    def discard_weights(self, claim: Claim) -> None:
        """There are none."""


def sweep() -> list[PlannedTrial]:
    """Two models, full precision and three methods at two bit-widths: 14 trials of 16 s."""
    grid: list[tuple[str, str, QuantScheme]] = []
    for model in ("llada-tiny", "llada-tiny-outliers"):
        grid.append((model, "fp", FULL_PRECISION))
        for method in ("rtn", "gptq"):
            grid += [(model, method, QuantScheme(w_bits=bits)) for bits in (2, 3, 4)]
    return [_planned(*point) for point in grid]


def _planned(model: str, method: str, scheme: QuantScheme) -> PlannedTrial:
    protocol = ProtocolSpec(tasks=tuple(TaskSpec(name=task) for task in TASKS_S), outliers=None)
    spec = TrialSpec(model=ModelRef(name=model), method=method, scheme=scheme, protocol=protocol)
    quantize = PlannedUnit(unit=Unit(kind="quantize"), estimated_s=QUANTIZE_S)
    units = [] if method == "fp" else [quantize]
    for task, seconds in TASKS_S.items():
        shards = math.ceil(seconds / SHARD_S)
        parts = (Unit(kind="evaluate", task=task, shard=n, shards=shards) for n in range(shards))
        units += [PlannedUnit(unit=part, estimated_s=seconds / shards) for part in parts]
    return PlannedTrial(
        spec=spec,
        label=f"{model} {method} {scheme}",
        units=tuple(units),
        estimated_s=LOAD_S + sum(unit.estimated_s for unit in units),
        priority=100 if method == "fp" else 0,
    )


def ours(folder: Path) -> None:
    """Run the sweep with the product."""
    from dllm_sweep.db.connect import open_store
    from dllm_sweep.run import RunOptions, run_sweep

    url = f"sqlite:///{folder / 'store.db'}"
    store = open_store(url)
    store.plan_sweep("sweep", "", sweep())
    store.close()
    options = RunOptions(
        cpus_per_trial=os.cpu_count() / WORKERS if os.cpu_count() else 0.5,
        gpus_per_trial=0.0,
        actors=WORKERS,
        files=str(folder),
        bench="side_by_side:TimedBench",
    )
    summary = run_sweep(url, "sweep", options)
    if summary.succeeded != len(sweep()):
        raise RuntimeError(f"not all trials succeeded: {summary}")


def tune(folder: Path) -> None:
    """Run the sweep with Ray Tune, a function a trial."""
    import ray
    from ray import tune

    log, trials = folder / "log.txt", sweep()

    def run_trial(config: dict[str, Any]) -> None:
        trial = trials[config["trial"]]
        time.sleep(LOAD_S)
        for planned in trial.units:
            work(log, trial.label, planned.unit.key, planned.estimated_s)
        tune.report({"score": 0.5})

    cores = os.cpu_count() or 1
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    try:
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": cores / WORKERS}),
            param_space={"trial": tune.grid_search(list(range(len(trials))))},
            run_config=tune.RunConfig(
                storage_path=str(folder / "tune"),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=-1),
            ),
        )
        found = tuner.fit()
        if found.num_errors:
            raise RuntimeError(f"{found.num_errors} trials failed under Tune")
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Event:
    """A line of the log."""

    what: str
    pid: int
    at_s: float
    label: str
    unit: str


def events(log: Path) -> list[Event]:
    """What has happened so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    parts = [line.split("|") for line in lines]
    return [Event(p[0], int(p[1]), float(p[2]), p[3], p[4]) for p in parts if len(p) == 5]


@contextlib.contextmanager
def killing(log: Path, at_s: tuple[float, ...]) -> Iterator[list[int]]:
    """Kill the worker that has been busy longest, at these times after the first began."""
    over, killed = threading.Event(), []

    def kill() -> None:
        left = list(at_s)
        while left and not over.wait(_WAIT_S):
            seen = events(log)
            if not seen or time.time() - seen[0].at_s < left[0]:
                continue
            busy = {event.pid: event for event in seen if event.pid not in killed}
            began = [event for event in busy.values() if event.what == "begin"]
            if began:
                left.pop(0)
                killed.append(min(began, key=lambda event: event.at_s).pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(killed[-1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def run() -> Listing:
    """Time both, without and with kills.

    Seconds are from the first unit's beginning to the last unit's end; `wall_s` is all of it,
    with starting and stopping Ray.
    """
    ways: dict[str, Callable[[Path], None]] = {"ours": ours, "ray tune": tune}
    rows = []
    for kills in ((), KILLS_S):
        for way, start in ways.items():
            rows.append(_timed(way, start, kills))
            print(rows[-1], file=sys.stderr)
    columns = ("way", "kills", "sweep_s", "baselines_s", "units_redone", "wall_s")
    return Listing(columns, tuple(rows))


def _timed(way: str, start: Callable[[Path], None], kills: tuple[float, ...]) -> tuple[object, ...]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, began_s = folder / "log.txt", time.time()
        with killing(log, kills) as killed:
            start(folder)
        wall_s = time.time() - began_s
        seen = events(log)
    zero_s = seen[0].at_s
    ends = [event for event in seen if event.what == "end"]
    full = [event.at_s for event in ends if " fp " in event.label]
    begun = sum(event.what == "begin" for event in seen)
    units = sum(len(trial.units) for trial in sweep())
    return (
        way,
        len(killed),
        round(max(event.at_s for event in ends) - zero_s, 1),
        round(max(full) - zero_s, 1),
        begun - units,
        round(wall_s, 1),
    )
