"""Work without a model, for campaigns and tests: the same trial and unit give the same numbers.

It runs in the real actors in the place of `dllm_sweep.workers.trial:Workbench`: name it as
`WorkerOptions.bench = "fake_bench:FakeBench"` in a process whose workers find this folder on
their path (`PYTHONPATH=benchmarks`).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dllm_sweep.records import Artifact, Claim, Cost, Metric, ModuleRow, UnitResult
from dllm_sweep.spec import Unit
from dllm_sweep.tally import Tally
from dllm_sweep.workers import files
from dllm_sweep.workers.messages import WorkerOptions

SCRIPT = "script.json"
"""A file beside the results that says what goes wrong; missing means that nothing does.

It holds a list of rules `{"label": "*rtn*", "unit": "evaluate*", "attempts": [1], "act": "kill",
"value": 0}`; the first one that fits a unit acts on it before its work is done.
"""
BEGUN = "begun"
"""A folder beside the results with one empty file for each unit that was begun, and how often."""
ITEMS = 64


class FakeBench:
    """Does every unit in the time that its trial's parameter `seconds` says (0 if it has none)."""

    device_name = "cpu"

    def __init__(self, options: WorkerOptions) -> None:
        self._files = options.files

    def run(self, claim: Claim, unit: Unit) -> UnitResult:
        """Leave a mark, do what the script says, and make numbers up."""
        started = time.monotonic()
        self._mark(claim, unit)
        self._act(claim, unit)
        time.sleep(float(dict(claim.trial.parameters).get("seconds", 0.0)))
        wall_s = time.monotonic() - started
        if unit.kind == "quantize":
            return self._quantized(claim, unit, wall_s)
        if unit.kind == "outliers":
            return UnitResult(unit=unit, wall_s=wall_s)
        return UnitResult(unit=unit, wall_s=wall_s, metrics=(_metric(claim, unit),))

    def discard_weights(self, claim: Claim) -> None:
        """Keep them: a later trial may have the same."""

    def _quantized(self, claim: Claim, unit: Unit, wall_s: float) -> UnitResult:
        row = ModuleRow(
            module="layers.0",
            w_bits=4,
            a_bits=16,
            group_size=None,
            symmetric=True,
            weights=1024,
            bits=4096.0,
            relative_error=next(_numbers(claim.trial_key, "error")),
        )
        cost = Cost(name="average_bits", value=4.0, unit="bit")
        weights = self._weights(claim)
        return UnitResult(
            unit=unit, wall_s=wall_s, modules=(row,), costs=(cost,), artifacts=(weights,)
        )

    def _weights(self, claim: Claim) -> Artifact:
        with files.new_file(self._files / "weights", ".safetensors") as path:
            path.write_bytes(hashlib.sha256(claim.trial_key.encode()).digest() * 8)
            return files.adopt(path, self._files, "weights")

    def _mark(self, claim: Claim, unit: Unit) -> None:
        name = f"{claim.trial_id}.{claim.attempt}.{unit.key.replace('/', '-')}.{os.getpid()}"
        path = self._files / BEGUN / f"{name}.{time.monotonic_ns()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        print(f"begun {claim.label} {unit.key}")

    def _act(self, claim: Claim, unit: Unit) -> None:
        script = self._files / SCRIPT
        if not script.is_file():
            return
        for rule in json.loads(script.read_text()):
            if _fits(rule, claim, unit):
                _ACTS[rule["act"]](rule.get("value", 0))
                return


def _fits(rule: dict[str, Any], claim: Claim, unit: Unit) -> bool:
    attempts = rule.get("attempts")
    return (
        fnmatch(claim.label, rule.get("label", "*"))
        and fnmatch(unit.key, rule.get("unit", "*"))
        and (attempts is None or claim.attempt in attempts)
    )


def _metric(claim: Claim, unit: Unit) -> Metric:
    """The mean over a shard's range of items, each with a score of its own."""
    start, stop = (ITEMS * (unit.shard + step) // unit.shards for step in (0, 1))
    scores = list(_numbers(claim.trial_key, unit.task, range(ITEMS)))[start:stop]
    tally = Tally.of(scores)
    return Metric(
        task=unit.task, name="acc", value=tally.mean, stderr=tally.stderr, n=tally.n, tally=tally
    )


def _numbers(key: str, what: str, items: range = range(1)) -> Iterator[float]:
    for item in items:
        digest = hashlib.sha256(f"{key}/{what}/{item}".encode()).digest()
        yield int.from_bytes(digest[:4], "big") / 2**32


def _fill_memory(mebibytes: float) -> None:
    held = bytearray()
    while len(held) < mebibytes * 2**20:
        held += os.urandom(2**20) * 16
    time.sleep(600)


def _raise(message: object) -> None:
    raise ValueError(str(message))


def _wait_for(path: object) -> None:
    while not Path(str(path)).exists():
        time.sleep(0.02)


_ACTS: dict[str, Callable[[Any], None]] = {
    "sleep": time.sleep,
    "wait_for": _wait_for,
    "raise": _raise,
    "kill": lambda _value: os.kill(os.getpid(), signal.SIGKILL),
    "leave": os._exit,
    "exit": sys.exit,
    "fill_memory": _fill_memory,
}
