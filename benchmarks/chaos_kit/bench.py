"""Work without a model that can go wrong on demand, in the real worker processes.

Two kinds of trials: those whose numbers follow from their key alone, and those of the method
`drift`, whose quantized weights differ every time: a trial of it is right only if all its numbers
belong to one and the same file of weights, so that a mixture of two attempts shows.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from fake_bench import FakeBench

from dllm_sweep.records import Artifact, Claim, Metric, UnitResult
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally
from dllm_sweep.workers import files
from dllm_sweep.workers.failures import WeightsLost
from dllm_sweep.workers.messages import WorkerOptions

DRIFT = "drift"
ITEMS = 64
RULES = "rules"
FIRED = "fired"


class ChaosBench(FakeBench):
    """Does units in the time that the rules say, and goes wrong where they say so."""

    def __init__(self, options: WorkerOptions) -> None:
        super().__init__(options)
        self._root = options.files
        self._made: tuple[str, int, Artifact] | None = None
        self._rules: dict[str, Any] = {}

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Do one unit, after whatever is to go wrong in it."""
        self._rules = _read(self._root / RULES / f"{claim.trial_key}.json")
        self._act(claim, unit, "before")
        time.sleep(self._rules.get("seconds", 0.0))
        weights = None if claim.trial.is_baseline else self._weights_for(claim, unit)
        result = super().run(claim, unit)
        if unit.kind == "quantize":
            result = self._quantized_anew(claim, result)
            weights = result.artifacts[0]
        elif unit.kind == "evaluate" and claim.trial.method == DRIFT and weights is not None:
            result = replace(result, metrics=(drift_metric(weights.sha256, unit),))
        self._act(claim, unit, "after")
        return replace(result, weights_sha256=None if weights is None else weights.sha256)

    def _quantized_anew(self, claim: Claim, result: UnitResult) -> UnitResult:
        if claim.trial.method == DRIFT:
            with files.new_file(self._root / "weights", ".safetensors") as path:
                path.write_bytes(os.urandom(4096))
                result = replace(result, artifacts=(files.adopt(path, self._root, "weights"),))
        self._made = (claim.trial_key, claim.attempt, result.artifacts[0])
        return result

    def _weights_for(self, claim: Claim, unit: Unit) -> Artifact | None:
        """The weights that a unit measures, checked as the product checks them."""
        if unit.kind == "quantize":
            return None
        made = self._made
        mine = made is not None and made[:2] == (claim.trial_key, claim.attempt)
        weights = made[2] if made is not None and mine else claim.weights
        if weights is None or not files.is_whole(weights, self._root):
            raise WeightsLost(f"the quantized weights of {claim.label} are not there")
        return weights

    def _act(self, claim: Claim, unit: Unit, when: str = "") -> None:
        for rule in self._rules.get("rules", ()):
            fits = rule["unit"] == unit.key and rule["when"] == when
            if fits and (not rule["once"] or _first_time(self._root / FIRED / rule["id"])):
                _ACTS[rule["act"]](rule.get("value"))


def drift_metric(weights_sha256: str, unit: Unit) -> Metric:
    """The score of a task's shard on given weights."""
    start, stop = (ITEMS * (unit.shard + step) // unit.shards for step in (0, 1))
    tally = Tally.of([drift_score(weights_sha256, unit.task, item) for item in range(start, stop)])
    return Metric(
        task=unit.task, name="acc", value=tally.mean, stderr=tally.stderr, n=tally.n, tally=tally
    )


def drift_score(weights_sha256: str, task: str, item: int) -> float:
    """One item's score on given weights."""
    digest = hashlib.sha256(f"{weights_sha256}/{task}/{item}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found


def _first_time(mark: Path) -> bool:
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _raise(error: type[BaseException], text: str) -> Callable[[Any], None]:
    def act(_value: Any) -> None:
        raise error(text)

    return act


def _gpu_out_of_memory(_value: Any) -> None:
    """The product asks the torch that is loaded for this class; here a stand-in is loaded."""
    torch = sys.modules.setdefault("torch", types.ModuleType("torch"))
    if not hasattr(torch, "OutOfMemoryError"):
        torch.OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})  # type: ignore[attr-defined]
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def _disk_full(_value: Any) -> None:
    with files.writing_into("weights"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _fill_memory(mebibytes: Any) -> None:
    """Take memory and keep it: Ray ends the process, or there was enough."""
    held = []
    for _ in range(int(mebibytes) // 64):
        held.append(os.urandom(2**20) * 64)
        time.sleep(0.02)
    time.sleep(30.0)
    held.clear()


def _die_at_statement(number: Any) -> None:
    """End the process at the given statement from now on: in the middle of the commit."""
    sqlalchemy = importlib.import_module("sqlalchemy")
    left = int(number)

    def on_statement(*_event: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(75)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", on_statement)


_ACTS: dict[str, Callable[[Any], None]] = {
    "unit raises: passing": _raise(ConnectionError, "the hub does not answer"),
    "unit raises: for good": _raise(ValueError, "a bad shape"),
    "unit raises: host memory": _raise(MemoryError, "no memory left"),
    "unit raises: GPU memory": _gpu_out_of_memory,
    "unit raises: disk full": _disk_full,
    "unit kills its process": lambda _value: os.kill(os.getpid(), signal.SIGKILL),
    "unit leaves by os._exit": lambda _value: os._exit(3),
    "unit leaves by sys.exit": lambda _value: sys.exit(3),
    "unit ends before its commit": lambda _value: os.kill(os.getpid(), signal.SIGKILL),
    "unit ends in its commit": _die_at_statement,
    "unit is told to end (SIGTERM)": lambda _value: os.kill(os.getpid(), signal.SIGTERM),
    "unit fills the memory": _fill_memory,
    "unit hangs": lambda _value: time.sleep(3600),
    "unit is slow": time.sleep,
    "poison trial": lambda _value: os.kill(os.getpid(), signal.SIGKILL),
}
