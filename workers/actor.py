"""The actor that holds a GPU: runs units, commits their results itself, tells how each ended.

The controller imports this module, too, so torch and the models are imported by the actor's
process alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_sweep import __version__
from dllm_sweep.db.interface import Store
from dllm_sweep.errors import Fenced
from dllm_sweep.records import Claim, HostInfo, TrialState, UnitResult
from dllm_sweep.spec import Unit
from dllm_sweep.workers import failures, files
from dllm_sweep.workers.messages import Outcome, WorkerOptions

if TYPE_CHECKING:
    from dllm_sweep.workers.trial import Workbench

log = logging.getLogger(__name__)

_VERSIONS = ("ray", "torch", "transformers", "lm-eval", "datasets")


class TrialActor:
    """Runs units one after the other with one warm model.

    Args:
        store: Where results are committed; on SQLite a proxy to the single writer.
        options: What is the same for all units.
    """

    def __init__(self, store: Store, options: WorkerOptions) -> None:
        import torch

        torch.set_num_threads(options.threads)
        self._store, self._options = store, options
        self._bench = self._new_bench()

    def host(self) -> HostInfo:
        """Describe the machine and the versions this actor runs on."""
        import torch

        gpu = self._options.device == "cuda"
        own = (("dllm-sweep", __version__), ("python", platform.python_version()))
        return HostInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            device=torch.cuda.get_device_name() if gpu else "cpu",
            versions=(*own, *((name, version(name)) for name in _VERSIONS)),
        )

    def run(self, claim: Claim, unit: Unit) -> Outcome:
        """Run a unit and commit its result; an error ends the attempt with its description.

        Whatever a method raises is its trial's error, also what is meant to end a process.
        """
        path = files.log_path(self._options.files, claim.trial_id, claim.trial_key, claim.attempt)
        with _output_to(path):
            log.info("unit %s of %s, attempt %d", unit.key, claim.label, claim.attempt)
            try:
                return self._run(claim, unit)
            except Fenced as error:
                log.warning("dropped: %s", error)
                return Outcome(unit=unit)
            except BaseException as error:
                return self._fail(claim, unit, error, path)

    def _run(self, claim: Claim, unit: Unit) -> Outcome:
        try:
            result = self._bench.run(claim, unit)
        except failures.WeightsLost as error:
            # The units done so far stay if quantizing again gives the same weights; the store
            # compares the digests and supersedes them if not.
            log.warning("%s: quantizing again", error)
            self._commit(claim, self._bench.run(claim, Unit(kind="quantize")))
            result = self._bench.run(claim, unit)
        state = self._commit(claim, result)
        return Outcome(unit=unit, wall_s=result.wall_s, state=state)

    def _new_bench(self) -> Workbench:
        from dllm_sweep.workers.trial import Workbench

        return Workbench(self._options)

    def _commit(self, claim: Claim, result: UnitResult) -> TrialState:
        state = self._store.commit_unit(claim, result)
        log.info("committed %s after %.1f s", result.unit.key, result.wall_s)
        if state is TrialState.SUCCEEDED:
            self._bench.discard_weights(claim)
        return state

    def _fail(self, claim: Claim, unit: Unit, error: BaseException, path: Path) -> Outcome:
        log.error("unit %s failed", unit.key, exc_info=error)
        _flush()
        failure = failures.describe(error, unit, path)
        # What a failed unit left in memory is unknown; the next one starts from the file.
        self._bench = self._new_bench()
        try:
            state = self._store.end_attempt(claim, failure, log_path=str(path))
        except Fenced:
            return Outcome(unit=unit)
        fresh = failures.needs_a_fresh_process(failure)
        return Outcome(unit=unit, state=state, failure=failure, fresh_process=fresh)


@contextlib.contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send everything this process prints, from C libraries too, to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    kept = [os.dup(1), os.dup(2)]
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
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
    sys.stdout.flush()
    sys.stderr.flush()
