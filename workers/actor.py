"""The actor that holds a GPU: runs units, commits their results itself, tells how each ended.

Nothing heavy is imported here: the work itself is done by a bench, which the options name.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dllm_sweep import __version__, shipping
from dllm_sweep.db.patience import patient
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import Claim, EndReason, HostInfo, TrialState, UnitResult
from dllm_sweep.shipping import ShippedFile
from dllm_sweep.spec import Unit
from dllm_sweep.workers import failures, files
from dllm_sweep.workers.beat import Beat
from dllm_sweep.workers.messages import Bench, Death, Outcome, WorkerOptions
from dllm_sweep.workers.store_actor import StoreLink

log = logging.getLogger(__name__)

_VERSIONS = ("ray", "torch", "transformers", "lm-eval", "datasets")


class Preempted(BaseException):
    """The process was told to end while it ran a unit; no method may catch it as an error."""


class TrialActor:
    """Runs units one after the other with one warm bench.

    Args:
        link: Where results are committed.
        options: What is the same for all units.
    """

    def __init__(self, link: StoreLink, options: WorkerOptions) -> None:
        if options.device == "cpu":
            # Ray leaves this unset for workers without a GPU: they would see every one.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if options.peers:
            options = replace(options, files=files.usable(options.files))
        store = link.open()
        self._store, self._options = patient(store), options
        self._bench = self._new_bench()
        self._host = _this_host(getattr(self._bench, "device_name", options.device))
        self._working = self._busy = self._ending = False
        self._beat = Beat(store, f"{self._host.host}:{self._host.pid}", options.beat_s)
        signal.signal(signal.SIGTERM, self._told_to_end)

    def whereabouts(self) -> tuple[HostInfo, str]:
        """Describe the process, name the node of the cluster that it runs on, and from now on give
        signs of life."""
        import ray

        from dllm_sweep.workers import pulse

        pulse.begin(self._options.beat_s)
        return self._host, ray.get_runtime_context().get_node_id()

    def ping(self) -> None:
        """Nothing: that it returns is the news."""

    def run(self, claim: Claim, unit: Unit, shipped: Sequence[ShippedFile] = ()) -> Outcome | Death:
        """Run a unit and commit its result; an error ends the attempt with its description.

        Whatever a method raises is its trial's error, also what is meant to end a process.

        Args:
            claim: The right to work at the trial.
            unit: What to do.
            shipped: Files that the trial names by their paths on another machine.
        """
        self._busy = True
        path = log_path(self._options.files, claim, self._host)
        try:
            shipping.unpack(shipped)
            ended = self._run_logged(claim, unit, path)
        except Exception as error:
            # Nothing has begun: its files or its log could not be written.
            ended = self._fail(claim, unit, error, path)
        finally:
            self._busy = False
        if self._ending and isinstance(ended, Outcome):
            return replace(ended, fresh_process=True)
        return ended

    def _run_logged(self, claim: Claim, unit: Unit, path: Path) -> Outcome | Death:
        with _output_to(path):
            self._beat.start(claim, path)
            log.info("unit %s of %s, attempt %d", unit.key, claim.label, claim.attempt)
            try:
                return self._run(claim, unit)
            except Fenced as error:
                log.warning("dropped: %s", error)
                return _dropped(unit)
            except Preempted:
                return self._preempted()
            except BaseException as error:
                return self._fail(claim, unit, error, path)
            finally:
                self._beat.stop()

    def _run(self, claim: Claim, unit: Unit) -> Outcome:
        try:
            result = self._work(claim, unit)
        except failures.WeightsLost as error:
            # The units done so far stay if quantizing again gives the same weights; the store
            # compares the digests and supersedes them if not.
            log.warning("%s: quantizing again", error)
            self._commit(claim, self._work(claim, Unit(kind="quantize")))
            self._beat.go_on(claim)
            result = self._work(claim, unit)
        state = self._commit(claim, result)
        worn_out = bool(getattr(self._bench, "worn_out", False))
        return Outcome(unit=unit, wall_s=result.wall_s, state=state, fresh_process=worn_out)

    def _work(self, claim: Claim, unit: Unit) -> UnitResult:
        self._working = True
        try:
            result = self._bench.run(claim, unit)
        finally:
            self._working = False
        return replace(result, host=self._host.host, device=self._host.device)

    def _new_bench(self) -> Bench:
        module, _, name = self._options.bench.partition(":")
        bench: Bench = getattr(importlib.import_module(module), name)(self._options)
        return bench

    def _commit(self, claim: Claim, result: UnitResult) -> TrialState:
        log.info("%s took %.1f s", result.unit.key, result.wall_s)
        # The log travels with the result: a beat of its own would cost as much as the commit.
        state = self._store.commit_unit(claim, result, **self._beat.piece())
        self._beat.arrived()
        if state is TrialState.SUCCEEDED:
            self._bench.discard_weights(claim)
        return state

    def _fail(self, claim: Claim, unit: Unit, error: BaseException, path: Path) -> Outcome:
        log.error("unit %s failed", unit.key, exc_info=error)
        _flush()
        failure = failures.describe(error, unit, path)
        stop = failure.message if failures.is_disk_full(error) else ""
        try:
            self._beat.last(claim)
            state = self._store.end_attempt(claim, failure, log_path=str(path))
        except Fenced:
            return _dropped(unit)
        except StoreError as broken:
            return Outcome(unit=unit, failure=failure, stop=str(broken))
        # What a failed unit left in memory is unknown; the next one starts from the file.
        self._bench = self._new_bench()
        fresh = failures.needs_a_fresh_process(failure)
        return Outcome(unit=unit, state=state, failure=failure, fresh_process=fresh, stop=stop)

    def _preempted(self) -> Death:
        log.warning("told to end (SIGTERM); the unit runs again elsewhere")
        message = "the worker was told to end, as before a spot machine is taken back"
        return Death(reason=EndReason.PREEMPTED, message=message, machine_lost=True)

    def _told_to_end(self, _signal: int, _frame: object) -> None:
        """Give a unit up at once, but not in the middle of a commit: that is over in a moment."""
        if self._working:
            self._working = False
            raise Preempted
        self._ending = True
        if not self._busy:
            sys.exit(0)


def _dropped(unit: Unit) -> Outcome:
    """The end of a unit that another owns now, or whose weights others have replaced: this process
    may hold the wrong ones."""
    return Outcome(unit=unit, fresh_process=True)


def log_path(root: Path, claim: Claim, host: HostInfo) -> Path:
    """The log of one worker in one attempt: several may work at a trial at the same time."""
    shared = files.log_path(root, claim.trial_id, claim.trial_key, claim.attempt)
    return shared.with_name(f"{shared.stem}.{host.host}.{host.pid}{shared.suffix}")


def _this_host(device: str) -> HostInfo:
    own = [("dllm-sweep", __version__), ("python", platform.python_version())]
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if gpus:
        own.append(("gpu", f"{socket.gethostname()}:{gpus}"))
    return HostInfo(
        host=socket.gethostname(),
        pid=os.getpid(),
        device=device,
        versions=(*own, *_installed()),
    )


def _installed() -> Iterator[tuple[str, str]]:
    for name in _VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            yield name, version(name)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send everything this process prints, from C libraries too, to the end of a file."""
    with files.writing_into(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    _flush()
    kept = [os.dup(1), os.dup(2)]
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        logging.basicConfig(
            level=logging.INFO,
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
            force=True,
        )
        yield
    finally:
        _flush()
        for descriptor, old in zip((1, 2), kept, strict=True):
            os.dup2(old, descriptor)
            os.close(old)
        os.close(target)


def _flush() -> None:
    # On a full disk what was printed is lost; how the unit ended must not be.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
