"""Stores of every kind, and short ways to say what a test puts into them."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_sweep.db.connect import open_store
from dllm_sweep.db.memory import MemoryStore
from dllm_sweep.records import (
    Artifact,
    Cost,
    EndReason,
    Failure,
    Holder,
    HostInfo,
    Metric,
    ModuleRow,
    OutlierRow,
    PlannedTrial,
    PlannedUnit,
    UnitResult,
)
from dllm_sweep.spec import ModelRef, ProtocolSpec, QuantScheme, TaskSpec, TrialSpec, Unit
from dllm_sweep.tally import Tally

SQL_STORES = ["sqlite", "postgres"]


class Build:
    """Small values of the store's types."""

    holder = Holder(host="here", pid=1, process_started_s=10.0)
    other = Holder(host="there", pid=2, process_started_s=20.0)
    host = HostInfo(host="here", pid=7, device="cpu", versions=(("torch", "2.13"),))
    protocol = ProtocolSpec(tasks=(TaskSpec(name="code"), TaskSpec(name="math")))

    def spec(self, method: str = "rtn", scheme: str = "w4a16-g128", seed: int = 0) -> TrialSpec:
        return TrialSpec(
            model=ModelRef(name="tiny"),
            method=method,
            scheme=QuantScheme.parse("w16a16" if method == "fp" else scheme),
            protocol=self.protocol,
            seed=seed,
        )

    def planned(self, *specs: TrialSpec, skip: str | None = None) -> list[PlannedTrial]:
        return [
            PlannedTrial(
                spec=spec,
                label=f"{spec.model} {spec.method} {spec.scheme}",
                skip_reason=skip,
                estimated_s=40.0,
                priority=int(spec.is_baseline),
            )
            for spec in specs
        ]

    def in_shards(self, spec: TrialSpec, shards: int, task: str = "math") -> PlannedTrial:
        """A trial with one of its tasks cut into shards."""
        units = [
            Unit(kind=unit.kind, task=unit.task, shard=shard, shards=count)
            for unit in spec.units()
            for count in [shards if unit.task == task else 1]
            for shard in range(count)
        ]
        (plan,) = self.planned(spec)
        planned = tuple(PlannedUnit(unit=unit, estimated_s=5.0) for unit in units)
        return replace(plan, units=planned)

    def scored(self, unit: Unit, scores: Sequence[float]) -> UnitResult:
        """The result of a task, or of its shard, over items with these scores."""
        part = scores[len(scores) * unit.shard // unit.shards :]
        part = part[: len(scores) * (unit.shard + 1) // unit.shards - (len(scores) - len(part))]
        tally = Tally.of(part)
        metric = Metric(
            task=unit.task,
            name="acc",
            value=tally.mean if part else math.nan,
            stderr=tally.stderr,
            n=len(part),
            tally=tally,
        )
        return UnitResult(unit=unit, wall_s=3.0, metrics=(metric,), host="node", device="cpu")

    def result(self, unit: Unit, digest: str = "a", value: float = 0.5) -> UnitResult:
        return {
            "quantize": self._quantized,
            "outliers": self._outliers,
            "evaluate": self._evaluated,
        }[unit.kind](unit, digest, value)

    def failure(self, reason: EndReason = EndReason.ERROR, *, retryable: bool = False) -> Failure:
        return Failure(
            reason=reason,
            error_type="ValueError",
            message="wrong shape\nsecond line",
            traceback="Traceback ...",
            fingerprint="ValueError rtn.py:12",
            unit="quantize",
            retryable=retryable,
        )

    def _quantized(self, unit: Unit, digest: str, value: float) -> UnitResult:
        module = ModuleRow(
            module="blocks.0.q",
            w_bits=4,
            a_bits=16,
            group_size=128,
            symmetric=False,
            weights=64,
            bits=272.0,
            relative_error=0.1,
        )
        weights = Artifact(kind="weights", path=f"{digest}.bin", sha256=digest * 64, bytes=10)
        cost = Cost(name="average_bits", value=4.25, unit="bit")
        return UnitResult(
            unit=unit, wall_s=2.0, modules=(module,), costs=(cost,), artifacts=(weights,)
        )

    def _outliers(self, unit: Unit, digest: str, value: float) -> UnitResult:
        rows = tuple(
            OutlierRow(
                layer=0,
                module="blocks.0.q",
                mask_ratio=0.5,
                positions="masked",
                statistic="channel_max",
                rank=rank,
                index=rank * 3,
                value=100.0 - rank,
            )
            for rank in range(30)
        )
        return UnitResult(unit=unit, wall_s=1.0, outliers=rows)

    def _evaluated(self, unit: Unit, digest: str, value: float) -> UnitResult:
        primary = Metric(task=unit.task, name="acc", value=value, stderr=0.05, n=100)
        more = Metric(task=unit.task, name="words", value=9.0, stderr=None, n=100, primary=False)
        return UnitResult(
            unit=unit, wall_s=3.0, metrics=(primary, more), warnings=("an answer was cut",)
        )

    def run(self, store, lease, trial, *, digest: str = "a", value: float = 0.5) -> None:
        """Claim a trial and commit all its units."""
        claim = store.claim(lease, trial.id, uuid.uuid4().hex, self.host)
        for unit in claim.units:
            store.commit_unit(claim, self.result(unit, digest, value))


@pytest.fixture(scope="session")
def build() -> Build:
    return Build()


@pytest.fixture
def new_store(tmp_path, request):
    """Makes the address of a new, empty SQL store of a kind."""
    return lambda kind: _new_store(kind, tmp_path, request)


@pytest.fixture
def store_url(request, new_store) -> Iterator[str]:
    """The address of a new, empty SQL store."""
    with new_store(getattr(request, "param", "sqlite")) as url:
        yield url


@contextmanager
def _new_store(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder}/store.db"
        return
    # The server starts with the first test that needs it.
    with request.getfixturevalue("postgres").database() as url:
        yield url


def pytest_generate_tests(metafunc) -> None:
    if "store" in metafunc.fixturenames:
        metafunc.parametrize("store", ["memory", *SQL_STORES], indirect=True)
    elif "store_url" in metafunc.fixturenames and "on_sqlite" not in metafunc.fixturenames:
        metafunc.parametrize("store_url", SQL_STORES, indirect=True)


@pytest.fixture
def on_sqlite() -> None:
    """A test that asks for this is about SQLite's files and runs there alone."""


@pytest.fixture
def store(request, new_store):
    """A new store of each kind."""
    if request.param == "memory":
        yield MemoryStore()
        return
    with new_store(request.param) as url:
        opened = open_store(url)
        yield opened
        opened.close()


@pytest.fixture
def sql_store(store_url):
    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def sweep(store, build):
    """A sweep of a baseline and two quantized trials."""
    specs = build.spec("fp"), build.spec("rtn"), build.spec("gptq")
    return store.plan_sweep("demo", "name: demo", build.planned(*specs))


@pytest.fixture
def lease(store, sweep, build):
    return store.take_lease("demo", build.holder, seconds=60)
