"""Who may run a sweep, and what happens when there is nothing to run it on."""

import pytest

from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import ClusterError
from dllm_sweep.records import Holder, PlannedTrial
from dllm_sweep.run import Capacity, RunOptions, options_for, run_sweep, shape
from dllm_sweep.spec import FULL_PRECISION, ModelRef, ProtocolSpec, TaskSpec, TrialSpec
from dllm_sweep.sweep_entries import Resources


@pytest.fixture
def store(tmp_path):
    opened = open_store(tmp_path / "store.db")
    protocol = ProtocolSpec(tasks=(TaskSpec(name="tiny_facts"),), outliers=None)
    spec = TrialSpec(
        model=ModelRef(name="llada-tiny"), method="fp", scheme=FULL_PRECISION, protocol=protocol
    )
    opened.plan_sweep("sweep", "", (PlannedTrial(spec=spec, label="llada-tiny fp"),))
    yield opened
    opened.close()


@pytest.mark.ray
def test_an_address_without_ray_is_a_cluster_error_and_gives_the_lease_back(store, tmp_path):
    with pytest.raises(ClusterError, match=r"nonsense.*ray start") as raised:
        run_sweep(f"sqlite:///{tmp_path}/store.db", "sweep", RunOptions(address="nonsense"))
    assert raised.value.exit_code == 4
    other = Holder(host="elsewhere", pid=7, process_started_s=1.0)
    assert store.take_lease("sweep", other, seconds=60)


LAPTOP = Capacity(cpus=2, gpus=0, memory_bytes=8 * 2**30, largest_cpus=2)
CLUSTER = Capacity(cpus=68, gpus=4, memory_bytes=512 * 2**30, largest_cpus=64)


@pytest.mark.parametrize(
    ("has", "options", "trials", "size", "cpus", "gpus"),
    [
        (LAPTOP, RunOptions(), 10, 2, 1, 0),
        (LAPTOP, RunOptions(), 1, 1, 2, 0),
        (LAPTOP, RunOptions(actors=1), 10, 1, 2, 0),
        (LAPTOP, RunOptions(cpus_per_trial=2), 10, 1, 2, 0),
        (CLUSTER, RunOptions(), 10, 4, 1, 1),
        (CLUSTER, RunOptions(gpus_per_trial=0.5), 10, 8, 1, 0.5),
        (CLUSTER, RunOptions(gpus_per_trial=0), 1, 1, 64, 0),
    ],
)
def test_workers_fill_the_cluster_and_fit_its_machines(has, options, trials, size, cpus, gpus):
    count, demand = shape(options, trials, has)
    assert (count, demand.cpus, demand.gpus) == (size, cpus, gpus)


def test_little_memory_means_few_workers():
    small = Capacity(cpus=16, gpus=0, memory_bytes=3 * 2**30, largest_cpus=16)
    assert shape(RunOptions(), 10, small)[0] == 3


@pytest.mark.parametrize("options", [RunOptions(gpus_per_trial=8), RunOptions(cpus_per_trial=65)])
def test_what_no_machine_can_carry_is_refused(options):
    with pytest.raises(ClusterError, match="ask for less"):
        shape(options, 10, CLUSTER)


def test_what_is_given_goes_before_what_the_sweep_file_says():
    resources = Resources(gpus=0.5, batch_size=4)
    told = options_for(resources, {"batch_size": 8, "actors": None, "address": "auto"})
    assert told == RunOptions(gpus_per_trial=0.5, batch_size=8, address="auto")
