"""Random runs of a sweep whose workers stall, are stopped and are killed: who survives as a zombie
must not leave a trace in the results.

The weights of every quantization are made up anew, and every score is made from the weights it was
measured on: results of two quantizations in one trial show.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from dllm_sweep.db.connect import open_store
from dllm_sweep.db.store import SqlStore
from dllm_sweep.db.transitions import RetryPolicy
from dllm_sweep.errors import Fenced, StoreUnavailable
from dllm_sweep.records import (
    Artifact,
    Claim,
    EndReason,
    Failure,
    Holder,
    HostInfo,
    Lease,
    Metric,
    ModuleRow,
    PlannedTrial,
    TrialState,
    UnitResult,
)
from dllm_sweep.spec import ModelRef, ProtocolSpec, QuantScheme, TaskSpec, TrialSpec, Unit

TASKS = ("code", "math", "facts")
DEADLINE_S = 120.0
_FORK = multiprocessing.get_context("fork")
_HOST = HostInfo(host="here", pid=1, device="cpu")
_ENDLESS = RetryPolicy(max_failures=10**6, max_lost=10**6, backoff_s=0.0, backoff_cap_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a run is like.

    Attributes:
        trials: Number of trials.
        workers: Number of processes.
        takeover_s: Seconds without an answer after which a worker's trial goes to another.
        stall: Probability that a worker stalls before a commit, for up to three takeovers.
        fault: Probability in each round that a worker is killed or stopped, or the controller
            is taken over.
    """

    trials: int = 6
    workers: int = 3
    takeover_s: float = 0.1
    stall: float = 0.2
    fault: float = 0.1


@dataclass
class Report:
    """What happened in a run, and what came of it."""

    attempts: int = 0
    units: int = 0
    fenced: int = 0
    stalls: int = 0
    kills: int = 0
    stops: int = 0
    takeovers: int = 0
    mixed: int = 0
    doubled: int = 0
    missing: int = 0

    def add(self, other: Report) -> None:
        """Add another run's numbers."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    claim: Claim | None = None
    since_s: float = 0.0
    busy: bool = False


def run(url: str, seed: int, setting: Setting = Setting()) -> Report:
    """Run one random sweep in a store until all its trials have succeeded, and look at it.

    Raises:
        TimeoutError: If it does not end.
    """
    store = open_store(url, policy=_ENDLESS)
    try:
        return _Run(store, url, seed, setting).run()
    finally:
        store.close()


class _Run:
    """The controller's side of one run."""

    def __init__(self, store: SqlStore, url: str, seed: int, setting: Setting) -> None:
        self._store, self._url, self._setting = store, url, setting
        self._random = random.Random(seed)
        self._report = Report()
        self._wakers: list[multiprocessing.process.BaseProcess] = []
        self._name = f"zombies-{seed}-{uuid.uuid4().hex[:8]}"
        self._sweep = store.plan_sweep(self._name, "", _trials(setting.trials), reuse=False)
        self._lease = self._take()
        self._workers = [self._start() for _ in range(setting.workers)]

    def run(self) -> Report:
        """Go on until all trials have succeeded and every zombie has had its say."""
        deadline_s = time.monotonic() + DEADLINE_S
        try:
            while not self._step():
                if time.monotonic() > deadline_s:
                    raise TimeoutError(f"run {self._name} does not end")
        finally:
            for waker in self._wakers:
                waker.join()
            for worker in self._workers:
                _end(worker)
        examine(self._store, self._name, self._report)
        return self._report

    def _step(self) -> bool:
        """One round; True when nothing is left to do or to hear."""
        trials = self._store.trials(self._sweep.id)
        self._hand_out([t.id for t in trials if t.state is TrialState.PENDING])
        self._listen()
        self._take_from_the_slow()
        over = all(trial.state is TrialState.SUCCEEDED for trial in trials)
        if not over:
            self._do_harm()
        return over and not any(worker.busy for worker in self._workers)

    def _hand_out(self, pending: list[int]) -> None:
        self._random.shuffle(pending)
        for worker in self._workers:
            if worker.busy or not pending:
                continue
            claim = self._store.claim(self._lease, pending.pop(), uuid.uuid4().hex, _HOST)
            if claim is not None:
                worker.claim, worker.busy, worker.since_s = claim, True, time.monotonic()
                worker.pipe.send(claim)
                self._report.attempts += 1

    def _listen(self) -> None:
        for pipe in wait([worker.pipe for worker in self._workers], timeout=0.02):
            worker = next(worker for worker in self._workers if worker.pipe is pipe)
            committed, fenced, stalls = worker.pipe.recv()
            self._report.units += committed
            self._report.fenced += fenced
            self._report.stalls += stalls
            worker.busy, worker.claim = False, None

    def _take_from_the_slow(self) -> None:
        for worker in self._workers:
            late = time.monotonic() - worker.since_s > self._setting.takeover_s
            if worker.claim is not None and late:
                self._lose(worker)

    def _lose(self, worker: _Worker) -> None:
        """Give a worker's trial to others; the worker knows nothing of it."""
        claim, worker.claim = worker.claim, None
        with contextlib.suppress(Fenced):
            self._store.end_attempt(claim, _LOST)

    def _do_harm(self) -> None:
        if self._random.random() > self._setting.fault:
            return
        index = self._random.randrange(len(self._workers))
        worker = self._workers[index]
        match self._random.choice(("kill", "stop", "takeover")):
            case "kill":
                self._report.kills += 1
                worker.process.kill()
                if worker.claim is not None:
                    self._lose(worker)
                _end(worker)
                self._workers[index] = self._start()
            case "stop":
                self._report.stops += 1
                self._stop(worker.process.pid)
            case "takeover":
                self._report.takeovers += 1
                self._lease = self._take()
                for other in self._workers:
                    other.claim = None

    def _stop(self, pid: int) -> None:
        """Stop a process for a while. Another one wakes it: it may hold a lock of the database
        that this one waits for."""
        os.kill(pid, signal.SIGSTOP)
        waker = _FORK.Process(target=_wake_later, args=(pid, 2 * self._setting.takeover_s))
        waker.start()
        self._wakers.append(waker)

    def _take(self) -> Lease:
        holder = Holder(host="here", pid=os.getpid(), process_started_s=self._random.random())
        return self._store.take_lease(self._name, holder, seconds=600, takeover=True)

    def _start(self) -> _Worker:
        ours, theirs = _FORK.Pipe()
        seed = self._random.getrandbits(64)
        process = _FORK.Process(
            target=_work, args=(theirs, self._url, seed, self._setting), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def examine(store: SqlStore, sweep: str, report: Report) -> None:
    """Count trials with results of two quantizations, results too many, and results missing."""
    rows = store.query(
        "SELECT r.trial_key, r.task, r.value, a.sha256 FROM results r"
        " JOIN trial t ON t.trial_key = r.trial_key"
        " JOIN sweep s ON s.id = t.sweep_id AND s.name = r.sweep"
        " JOIN artifact a ON a.trial_id = t.id AND a.generation = t.generation"
        " AND a.kind = 'weights' WHERE r.sweep = ?",
        [sweep],
    ).rows
    places = [(key, task) for key, task, _, _ in rows]
    trials = {trial.key for trial in store.trials(store.sweep(sweep).id)}
    report.mixed += len({key for key, task, value, sha in rows if value != score_of(sha, task)})
    report.doubled += len(places) - len(set(places))
    report.missing += len({(key, task) for key in trials for task in TASKS} - set(places))


def score_of(weights_sha256: str, task: str) -> float:
    """The score that these weights have."""
    return int(hashlib.sha256(f"{weights_sha256} {task}".encode()).hexdigest()[:8], 16) / 2**32


def _work(pipe: Connection, url: str, seed: int, setting: Setting) -> None:
    """A worker: run each claim that comes to its end, whoever owns the trial by then."""
    rng, store = random.Random(seed), open_store(url, policy=_ENDLESS)
    while True:
        try:
            claim = pipe.recv()
        except EOFError:
            return
        pipe.send(_run_claim(store, claim, rng, setting))


def _run_claim(
    store: SqlStore, claim: Claim, rng: random.Random, setting: Setting
) -> tuple[int, int, int]:
    """Run a claim's units; returns units committed, commits refused, stalls."""
    weights = claim.weights.sha256 if claim.weights is not None else ""
    # Some have lost the file of their weights and quantize again, to other weights.
    again = not weights or rng.random() < 0.3
    committed = fenced = stalls = 0
    for unit in claim.trial.units():
        if unit.key in claim.done and not again:
            continue
        if unit.kind == "quantize":
            weights = f"{rng.getrandbits(256):064x}"
        if rng.random() < setting.stall:
            stalls += 1
            time.sleep(setting.takeover_s * rng.uniform(0.5, 3.0))
        # A zombie does not stop at its first refusal: it tries to do all the harm it can.
        try:
            _commit(store, claim, _result(unit, weights))
            committed += 1
        except Fenced:
            fenced += 1
    return committed, fenced, stalls


def _commit(store: SqlStore, claim: Claim, result: UnitResult) -> None:
    while True:
        with contextlib.suppress(StoreUnavailable):
            store.commit_unit(claim, result)
            return


def _result(unit: Unit, weights: str) -> UnitResult:
    if unit.kind == "quantize":
        file = Artifact(kind="weights", path=f"{weights}.bin", sha256=weights, bytes=1)
        return UnitResult(unit=unit, wall_s=0.0, artifacts=(file,), modules=(_MODULE,))
    score = score_of(weights, unit.task)
    metric = Metric(task=unit.task, name="acc", value=score, stderr=None, n=1)
    return UnitResult(unit=unit, wall_s=0.0, metrics=(metric,))


def _trials(count: int) -> Sequence[PlannedTrial]:
    protocol = ProtocolSpec(tasks=tuple(TaskSpec(name=name) for name in TASKS), outliers=None)
    specs = (
        TrialSpec(
            model=ModelRef(name="tiny"),
            method="rtn",
            scheme=QuantScheme.parse("w4a16-g128"),
            protocol=protocol,
            seed=seed,
        )
        for seed in range(count)
    )
    return [PlannedTrial(spec=spec, label=f"seed {spec.seed}") for spec in specs]


def _wake_later(pid: int, seconds: float) -> None:
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _end(worker: _Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


_MODULE = ModuleRow(
    module="q",
    w_bits=4,
    a_bits=16,
    group_size=128,
    symmetric=False,
    weights=1,
    bits=4.0,
    relative_error=0.0,
)
_LOST = Failure(
    reason=EndReason.LOST,
    error_type="",
    message="too slow",
    traceback="",
    fingerprint="slow",
    unit="",
    retryable=True,
)
