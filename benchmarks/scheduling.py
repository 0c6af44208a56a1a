"""How well the controller orders work, beside two usual ways, in one simulated world.

    python benchmarks/scheduling.py                     simulated: the study's sweep on 8 GPUs
    python benchmarks/scheduling.py --gpus 64
    python benchmarks/scheduling.py --real              a small sweep, timed under Ray Tune, too

The sweep: 3 models x 6 methods x 4 bit-widths x 2 calibration sets and the full-precision
baselines, 10 tasks each, 405 GPU-minutes of evaluation a trial at full precision. Costs are
plausible guesses, not measurements: the ratios are what counts. What a task of a trial really
takes is off the estimate by a log-normal factor (0.25) that no way of ordering knows.

- `ours`: the controller itself (dllm_sweep.simulate), tasks cut into shards of 20 minutes. The
  planner drops the calibration axis for the method that needs no data: 135 trials.
- `monolithic`: a trial is one piece of work, started in the order of the grid with full precision
  first in each model; a failed machine loses it, and it begins anew (Ray Tune's way).
- `split`: every task of a trial is a piece of work that loads the weights again, in the order of
  the grid, once the trial is quantized (OpenCompass's way).

Both are shown on the same 135 trials, and on the 147 of the grid as it is written, which is what a
tool runs that does not know which axes mean something.

The lower bound is that of `dllm_sweep.simulate.bound_s`: the larger of all work (every unit once
and every trial's weights loaded once, at what they really take) shared out evenly over the GPUs,
and the longest chain of one trial (loading, quantizing, its longest unit). With failures it is the
same number: no order of work reaches it then.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from study_sweep import LOAD_S, study

from dllm_sweep.records import PlannedTrial, PlannedUnit
from dllm_sweep.reports.listing import Listing, show
from dllm_sweep.simulate import World, simulate
from dllm_sweep.workers.virtual_pool import Failures

HOUR_S = 3600.0
SPREAD = 0.25
AWAY_S = 600.0


@dataclass(frozen=True)
class Piece:
    """What a usual tool starts and repeats as a whole.

    Attributes:
        seconds: What it really takes, with loading.
        baseline: Whether it belongs to a baseline.
        after: Number of the piece that must be over before; None for none.
    """

    seconds: float
    baseline: bool
    after: int | None = None


def real_s(trial: PlannedTrial, unit: PlannedUnit, seed: int) -> float:
    """What a unit really takes: drawn as `dllm_sweep.simulate` draws it."""
    name = unit.unit.task or unit.unit.kind
    chance = random.Random(f"{seed}:{trial.spec.key}:{name}")
    return unit.estimated_s * math.exp(chance.gauss(0.0, SPREAD))


def monolithic(trials: Sequence[PlannedTrial], seed: int) -> list[Piece]:
    """One piece a trial."""
    return [
        Piece(LOAD_S + sum(real_s(trial, unit, seed) for unit in trial.units), _is_full(trial))
        for trial in trials
    ]


def split(trials: Sequence[PlannedTrial], seed: int) -> list[Piece]:
    """One piece for quantizing and one for each task, each of which loads the weights."""
    pieces: list[Piece] = []
    for trial in trials:
        tasks: dict[str, float] = {}
        for unit in trial.units:
            tasks[unit.unit.task] = tasks.get(unit.unit.task, LOAD_S) + real_s(trial, unit, seed)
        first = tasks.pop("", None)
        after = None if first is None else len(pieces)
        if first is not None:
            pieces.append(Piece(first, baseline=False))
        pieces += [Piece(seconds, _is_full(trial), after) for seconds in tasks.values()]
    return pieces


def _is_full(trial: PlannedTrial) -> bool:
    return trial.spec.is_baseline


@dataclass(frozen=True)
class Times:
    """Seconds until everything, and until all baselines were done."""

    makespan_s: float
    baselines_s: float


class Queue:
    """Runs pieces on GPUs in their order, the first that may start first; a piece whose machine
    fails goes back to its place and begins anew."""

    def __init__(self, pieces: Sequence[Piece], gpus: int, failures: Failures | None) -> None:
        self._pieces, self._failures = pieces, failures
        self._ready = [n for n, piece in enumerate(pieces) if piece.after is None]
        self._idle = list(range(gpus))
        self._running: dict[int, tuple[int, int]] = {}
        self._ended: dict[int, float] = {}
        self._events: list[tuple[float, int, str, int]] = []
        self._serials = itertools.count()
        self._lives = [failures.lifetimes(gpu) for gpu in range(gpus)] if failures else []
        for gpu, life in enumerate(self._lives):
            self._at(life(), "fail", gpu)

    def run(self) -> Times:
        """Run all pieces to their end."""
        self._start(0.0)
        while len(self._ended) < len(self._pieces):
            now_s, serial, what, gpu = heapq.heappop(self._events)
            self._happen(now_s, serial, what, gpu)
            self._start(now_s)
        full = [self._ended[n] for n, piece in enumerate(self._pieces) if piece.baseline]
        return Times(max(self._ended.values()), max(full))

    def _happen(self, now_s: float, serial: int, what: str, gpu: int) -> None:
        if what == "done" and self._running.get(gpu, (0, -1))[1] == serial:
            piece, _ = self._running.pop(gpu)
            self._ended[piece] = now_s
            self._idle.append(gpu)
            for number, other in enumerate(self._pieces):
                if other.after == piece:
                    heapq.heappush(self._ready, number)
        elif what == "fail" and self._failures is not None:
            if gpu in self._running:
                heapq.heappush(self._ready, self._running.pop(gpu)[0])
            else:
                self._idle.remove(gpu)
            self._at(now_s + self._failures.away_s, "back", gpu)
        elif what == "back":
            self._idle.append(gpu)
            self._at(now_s + self._lives[gpu](), "fail", gpu)

    def _start(self, now_s: float) -> None:
        while self._ready and self._idle:
            gpu, piece = self._idle.pop(0), heapq.heappop(self._ready)
            serial = self._at(now_s + self._pieces[piece].seconds, "done", gpu)
            self._running[gpu] = (piece, serial)

    def _at(self, at_s: float, what: str, gpu: int) -> int:
        serial = next(self._serials)
        heapq.heappush(self._events, (at_s, serial, what, gpu))
        return serial


@dataclass(frozen=True)
class Row:
    """One way of ordering in one kind of world, over all seeds."""

    way: str
    trials: int
    mtbf_h: float | None
    makespan_h: float
    baselines_h: float
    of_bound: float
    """Lower bound over makespan, of the same trials; 1 is perfect."""
    ours_faster: float
    """How many times longer than ours it takes, the mean over seeds of the same world."""


Way = Callable[[Sequence[PlannedTrial], int], list[Piece]]
WAYS: dict[str, Way] = {"monolithic": monolithic, "split": split}


def compare(gpus: int, mtbf_h: float | None, seeds: int, scale: float) -> list[Row]:
    """All ways in the same worlds: equal seeds, costs and failures."""
    own, written = (study(as_written=flag, scale=scale) for flag in (False, True))
    worlds = [_world(gpus, mtbf_h, seed) for seed in range(seeds)]
    ours = [simulate(own, world) for world in worlds]
    bounds = [run.bound_s for run in ours]
    times = [Times(run.makespan_s, run.baselines_s) for run in ours]
    rows = [_row("ours", len(own), mtbf_h, times, times, bounds)]
    for way, trials in itertools.product(WAYS, (own, written)):
        found = [
            Queue(WAYS[way](trials, world.seed), gpus, world.failures).run() for world in worlds
        ]
        rows.append(_row(way, len(trials), mtbf_h, found, times, bounds))
    return rows


def _world(gpus: int, mtbf_h: float | None, seed: int) -> World:
    failures = Failures(mtbf_s=mtbf_h * HOUR_S, away_s=AWAY_S, seed=seed) if mtbf_h else None
    return World(gpus=gpus, failures=failures, spread=SPREAD, seed=seed)


def _row(
    way: str,
    trials: int,
    mtbf_h: float | None,
    found: Sequence[Times],
    ours: Sequence[Times],
    bounds: Sequence[float],
) -> Row:
    mean = statistics.fmean
    return Row(
        way=way,
        trials=trials,
        mtbf_h=mtbf_h,
        makespan_h=mean(one.makespan_s for one in found) / HOUR_S,
        baselines_h=mean(one.baselines_s for one in found) / HOUR_S,
        of_bound=mean(b / one.makespan_s for b, one in zip(bounds, found, strict=True)),
        ours_faster=mean(
            one.makespan_s / own.makespan_s for one, own in zip(found, ours, strict=True)
        ),
    )


def listing(rows: Sequence[Row]) -> Listing:
    """A line for each way and world."""
    columns = (
        "way",
        "trials",
        "mtbf_h",
        "makespan_h",
        "baselines_h",
        "bound/makespan",
        "time/ours",
    )
    lines = [
        (
            row.way,
            row.trials,
            row.mtbf_h,
            round(row.makespan_h, 2),
            round(row.baselines_h, 2),
            round(row.of_bound, 4),
            round(row.ours_faster, 2),
        )
        for row in rows
    ]
    return Listing(columns, tuple(lines))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; 0 if it could be run."""
    parser = argparse.ArgumentParser(description="How well the controller orders work.")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=15)
    parser.add_argument("--mtbf", type=float, nargs="*", default=[0.0, 24.0, 6.0], metavar="HOURS")
    parser.add_argument("--scale", type=float, default=1.0, help="of evaluation times")
    parser.add_argument("--real", action="store_true", help="a small sweep on a real Ray, timed")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    options = parser.parse_args(arguments)
    if options.real:
        from side_by_side import run

        show(run(), options.format)
        return 0
    rows: list[Row] = []
    for mtbf_h in options.mtbf:
        rows += compare(options.gpus, mtbf_h or None, options.seeds, options.scale)
    show(listing(rows), options.format)
    return 0


if __name__ == "__main__":
    sys.exit(main())
