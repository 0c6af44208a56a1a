"""A claim on a short trial of the embedded model, and a real store that it belongs to."""

import pytest

from dllm_sweep.db.connect import open_store
from dllm_sweep.methods.parameters import build
from dllm_sweep.process import this_process
from dllm_sweep.records import HostInfo, PlannedTrial
from dllm_sweep.spec import ModelRef, ProtocolSpec, QuantScheme, TaskSpec, TrialSpec
from dllm_sweep.workers.messages import WorkerOptions

HOST = HostInfo(host="here", pid=1, device="cpu")


@pytest.fixture
def make_trial():
    def make(method="rtn"):
        tasks = (TaskSpec(name="tiny_facts", limit=8, draws=2),)
        return TrialSpec(
            model=ModelRef(name="llada-tiny"),
            method=str(method),
            method_version=build(str(method)).version,
            scheme=QuantScheme.parse("w3a16-g128-asym"),
            protocol=ProtocolSpec(tasks=tasks, outliers=None),
        )

    return make


@pytest.fixture
def options(tmp_path):
    return WorkerOptions(files=tmp_path / "files", device="cpu", threads=1, batch_size=8)


@pytest.fixture
def store(tmp_path):
    opened = open_store(tmp_path / "store.db")
    yield opened
    opened.close()


@pytest.fixture
def claim_of(store):
    """Plan one trial in the store and claim it."""

    def claim(spec):
        sweep = store.plan_sweep("sweep", "", (PlannedTrial(spec=spec, label="short trial"),))
        lease = store.take_lease("sweep", this_process(), seconds=60, takeover=True)
        (trial,) = store.trials(sweep.id)
        return store.claim(lease, trial.id, "claim", HOST)

    return claim
