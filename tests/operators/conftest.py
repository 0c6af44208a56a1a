"""A sweep in a store of each kind, with its files, and the command line beside it."""

import json
import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dllm_sweep.cli import main
from dllm_sweep.db.connect import open_store
from dllm_sweep.records import EndReason
from dllm_sweep.workers import files
from tests.db.conftest import Build

DAY_S = 86400.0
METHODS = ("fp", "rtn", "gptq", "awq")


@dataclass
class Bench:
    """A store with the sweep `demo`: a baseline and three quantized trials, nothing done yet."""

    url: str
    folder: Path
    build: Build

    def __post_init__(self):
        self.store = open_store(self.url)
        self.root = files.root_for(self.url)
        self.plan("demo", *METHODS)
        self.lease = self.store.take_lease("demo", self.build.holder, seconds=60)

    def plan(self, name, *methods, seed=0):
        specs = [self.build.spec(method, seed=seed) for method in methods]
        return self.store.plan_sweep(name, f"name: {name}", self.build.planned(*specs))

    def cli(self, *args):
        return CliRunner().invoke(main, list(args), prog_name="dllm-sweep")

    def json(self, *args):
        done = self.cli(*args, "--format", "json")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.output
        return json.loads(done.stdout)

    def trial(self, method, sweep="demo"):
        rows = self.store.trials(self.store.sweep(sweep).id)
        return next(row for row in rows if row.method == method)

    def claim(self, method):
        trial = self.trial(method)
        return self.store.claim(self.lease, trial.id, uuid.uuid4().hex, self.build.host)

    def keep(self, kind, content, suffix=".bin"):
        """Write a file as a worker does."""
        with files.new_file(self.root / kind, suffix) as path:
            path.write_bytes(content)
            return files.adopt(path, self.root, kind)

    def commit(self, claim, unit, content):
        """Commit a unit whose artifact has this content."""
        result = replace(self.build.result(unit), artifacts=())
        if unit.kind == "quantize":
            result = replace(result, artifacts=(self.keep("weights", content),))
        elif unit.kind == "evaluate":
            samples = self.keep("samples", content + unit.task.encode(), ".parquet")
            result = replace(result, artifacts=(samples,))
        return self.store.commit_unit(claim, result)

    def succeed(self, method):
        claim = self.claim(method)
        for unit in claim.units or claim.trial.units():
            self.commit(claim, unit, method.encode())
        return claim

    def fail(self, method, reason=EndReason.ERROR, *, retryable=False, log_path=None, **changes):
        claim = self.claim(method)
        failure = replace(self.build.failure(reason, retryable=retryable), **changes)
        self.store.end_attempt(claim, failure, log_path=log_path)
        return claim

    def sql(self, statement, *values):
        """Change rows behind the store's back."""
        mark = statement if self.url.startswith("sqlite") else statement.replace("?", "%s")
        self.store.writing(
            lambda connection: connection.exec_driver_sql(mark, tuple(values) or None).close()
        )

    def age(self, *, days):
        """Make everything that lies in the folder for files older."""
        then = time.time() - days * DAY_S
        for path in self.root.rglob("*"):
            os.utime(path, (then, then))

    def end_earlier(self, *, days):
        """Make all trials have ended longer ago."""
        self.sql(f"UPDATE trial SET finished_s = finished_s - {days * DAY_S}")

    def close(self):
        self.store.close()


def pytest_generate_tests(metafunc):
    if "bench" in metafunc.fixturenames and "on_sqlite" not in metafunc.fixturenames:
        metafunc.parametrize("bench", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def on_sqlite():
    """A test that asks for this is not about the database."""


@pytest.fixture
def bench(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if getattr(request, "param", "sqlite") == "sqlite":
        yield from _bench(f"sqlite:///{tmp_path}/store.db", tmp_path, monkeypatch)
        return
    with request.getfixturevalue("postgres").database() as url:
        yield from _bench(url, tmp_path, monkeypatch)


def _bench(url, folder, monkeypatch):
    monkeypatch.setenv("DLLM_SWEEP_STORE", url)
    made = Bench(url, folder, Build())
    yield made
    made.close()
