"""A store with two finished trials of the embedded model: their answers lie beside it."""

import json

import pytest
from click.testing import CliRunner

from dllm_sweep.cli import main
from dllm_sweep.db.connect import open_store
from dllm_sweep.process import this_process
from dllm_sweep.records import HostInfo, PlannedTrial, PlannedUnit
from dllm_sweep.spec import (
    DecodingSpec,
    ModelRef,
    ProtocolSpec,
    QuantScheme,
    TaskSpec,
    TrialSpec,
    Unit,
)
from dllm_sweep.workers.files import root_for
from dllm_sweep.workers.messages import WorkerOptions
from dllm_sweep.workers.trial import Workbench

HOST = HostInfo(host="here", pid=1, device="cpu")
PROTOCOL = ProtocolSpec(
    tasks=(
        TaskSpec(name="tiny_code", limit=4),
        TaskSpec(name="tiny_facts", limit=12, draws=2),
        TaskSpec(name="tiny_math", limit=9),
    ),
    decoding=DecodingSpec(gen_length=32, steps=8, block_length=32),
    outliers=None,
)
SHARDS = {"tiny_math": 3, "tiny_facts": 2}


def planned(method, scheme):
    spec = TrialSpec(
        model=ModelRef(name="llada-tiny"),
        method=method,
        scheme=QuantScheme.parse(scheme),
        protocol=PROTOCOL,
    )
    units = [
        PlannedUnit(unit=Unit(**{**vars_of(unit), "shard": shard, "shards": shards}), estimated_s=1)
        for unit in spec.units()
        for shards in [SHARDS.get(unit.task, 1)]
        for shard in range(shards)
    ]
    return PlannedTrial(spec=spec, label=f"{method} {scheme}", units=tuple(units))


def vars_of(unit):
    return {name: getattr(unit, name) for name in ("kind", "task")}


def run_trials(folder):
    """Run both trials as workers do, without Ray; give the store's path."""
    path = folder / "store.db"
    store = open_store(path)
    trials = (planned("fp", "w16a16"), planned("rtn", "w2a16-g128-asym"))
    sweep = store.plan_sweep("small", "name: small\n", trials)
    lease = store.take_lease("small", this_process(), seconds=600)
    files = root_for(f"sqlite:///{path}")
    options = WorkerOptions(files=files, device="cpu", threads=1, batch_size=16)
    bench = Workbench(options)
    for trial in store.trials(sweep.id):
        claim = store.claim(lease, trial.id, f"claim-{trial.id}", HOST)
        for unit in claim.units:
            store.commit_unit(claim, bench.run(claim, unit))
    store.release_lease(lease)
    store.close()
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Path of a store that nobody writes to."""
    return run_trials(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def key_of(finished):
    """The key of the trial of a method."""
    store = open_store(finished, create=False)
    rows = store.query("SELECT method, trial_key FROM trials").rows
    store.close()
    return lambda method: dict(rows)[method]


@pytest.fixture
def run(finished):
    """Run a command on the store; give its result."""

    def command(*words, store=finished):
        words = [str(word) for word in (*words, "--store", store)]
        return CliRunner().invoke(main, words, prog_name="dllm-sweep")

    return command


@pytest.fixture
def run_json(run):
    """Run a command on the store; give what it printed as JSON."""

    def command(*words, **more):
        done = run(*words, "--format", "json", **more)
        assert done.stdout, done.output
        return json.loads(done.stdout)

    return command
