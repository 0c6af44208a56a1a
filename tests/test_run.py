"""What a sweep asks of a cluster, and what happens when the cluster cannot give it."""

from dataclasses import replace

import pytest

from dllm_sweep.cluster import demand_for
from dllm_sweep.db.connect import open_store
from dllm_sweep.errors import ClusterError, InputError
from dllm_sweep.preflight import Report, check_demands, check_store, check_versions
from dllm_sweep.records import Demand, Holder, PlannedTrial
from dllm_sweep.run import RunOptions, run_sweep
from dllm_sweep.spec import FULL_PRECISION, ModelRef, ProtocolSpec, TaskSpec, TrialSpec
from dllm_sweep.sweep_entries import Resources
from dllm_sweep.workers.autoscaling import UNKNOWN, kinds
from dllm_sweep.workers.capacity import Machine, carries, fits


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


def test_a_machine_too_busy_to_start_ray_is_told_in_one_line(store, tmp_path, monkeypatch):
    import ray

    def too_busy(**_):
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr(ray, "init", too_busy)
    with pytest.raises(ClusterError, match=r"'local'.*too busy.*resume"):
        run_sweep(f"sqlite:///{tmp_path}/store.db", "sweep", RunOptions())
    assert store.take_lease("sweep", Holder(host="else", pid=7, process_started_s=1.0), seconds=60)


def machine(**has):
    return Machine(**{"name": "m", "cpus": 2, "memory_bytes": 8 * 2**30} | has)


LAPTOP = (machine(),)
CLUSTER = (
    machine(name="head", cpus=4),
    machine(name="gpus", cpus=64, gpus=4, memory_bytes=512 * 2**30),
)


@pytest.mark.parametrize(
    ("has", "written", "trials", "workers", "cpus", "gpus"),
    [
        (LAPTOP, {}, 10, 2, 1, 0),
        (LAPTOP, {}, 1, 1, 2, 0),
        (LAPTOP, {"cpus": 2}, 10, 1, 2, 0),
        (CLUSTER, {}, 10, 4, 1, 1),
        (CLUSTER, {"gpus": 0.5}, 10, 8, 1, 0.5),
        (CLUSTER, {"gpus": 0.3}, 99, 12, 1, 0.3),
        (CLUSTER, {"gpus": 4, "cpus": 8}, 10, 1, 8, 4),
        (CLUSTER, {"gpus": 0}, 1, 1, 64, 0),
        ((machine(cpus=16, memory_bytes=3 * 2**30),), {}, 10, 3, 5, 0),
    ],
)
def test_workers_fill_the_cluster_and_fit_its_machines(has, written, trials, workers, cpus, gpus):
    demand = demand_for(Resources(**written), has, trials)
    assert (demand.cpus, demand.gpus) == (cpus, gpus)
    assert carries(has, demand) == workers


def test_machines_that_the_autoscaler_may_start_count():
    kind = machine(name="gpu", cpus=8, gpus=2, count=3, is_up=False)
    assert carries((machine(), kind), Demand(cpus=1, gpus=1)) == 6


def test_what_an_autoscaler_is_told_to_add_is_known_by_its_configuration():
    config = {
        "max_workers": 5,
        "head_node_type": "head",
        "available_node_types": {
            "head": {"resources": {"CPU": 4}},
            "spot": {"resources": {"CPU": 8, "GPU": 2}, "labels": {"gpu": "h200"}},
            "few": {"resources": {"CPU": 8}, "max_workers": 3},
            "plain": {"resources": {}, "max_workers": 2},
        },
    }
    spot, few, plain = kinds(config)
    assert (spot.name, spot.cpus, spot.gpus, spot.count) == ("spot", 8, 2, 5)
    assert spot.labels == (("gpu", "h200"),)
    assert (few.count, few.is_up) == (3, False)
    assert plain is UNKNOWN


HEAD = machine(name="head", cpus=0)


def test_what_an_autoscaler_does_not_tell_is_not_refused_but_told():
    demand = demand_for(Resources(gpus=4), (HEAD, UNKNOWN), 10)
    (note,) = check_demands({"a": demand}, (HEAD, UNKNOWN))
    assert "a wait for a machine with 4 GPUs + 1 CPUs: none is up" in note
    assert "does not tell whether it can ever add one" in note
    assert carries((HEAD, UNKNOWN), demand) >= 10


def test_nothing_is_guessed_of_machines_that_nobody_knows():
    with pytest.raises(InputError, match="say what a worker needs, --gpus-per-trial 1"):
        demand_for(Resources(), (HEAD, UNKNOWN), 10)
    assert demand_for(Resources(), (machine(cpus=4), UNKNOWN), 2).gpus == 0


def test_trials_that_wait_for_a_machine_are_named_before_they_wait():
    kind = machine(name="gpu", cpus=8, gpus=2, is_up=False)
    (note,) = check_demands({"a": Demand(gpus=1)}, (HEAD, kind))
    assert "autoscaler is asked for it" in note
    assert "ever" not in note
    assert check_demands({"a": Demand(gpus=1)}, CLUSTER) == ()


@pytest.mark.parametrize(
    ("wanted", "fits_there"),
    [("h200", True), ("in(h100, h200)", True), ("!h100", True), ("h100", False), ("!h200", False)],
)
def test_labels_are_matched_as_ray_does(wanted, fits_there):
    labelled = machine(labels=(("gpu", "h200"),))
    assert fits(labelled, Demand(labels=(("gpu", wanted),))) == (2 if fits_there else 0)


@pytest.mark.parametrize(
    ("written", "named"),
    [
        ({"gpus": 8}, r"a, b, c and 2 more ask for 8 GPUs \+ 1 CPUs"),
        ({"cpus": 65}, r"1 GPUs \+ 65 CPUs"),
        ({"memory": "1TiB"}, "1024.0 GiB"),
        ({"labels": {"gpu": "h900"}}, "label gpu=h900"),
    ],
)
def test_what_no_machine_can_ever_carry_is_refused_by_name(written, named):
    demand = demand_for(Resources(**written), CLUSTER, 10)
    with pytest.raises(ClusterError, match=named) as raised:
        check_demands(dict.fromkeys("abcde", demand), CLUSTER)
    assert "largest machine (gpus) has 4 GPUs, 64 CPUs, 512.0 GiB" in str(raised.value)


def report(name, **differing):
    usual = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "transformers": "5.0"}
    versions = tuple(sorted((usual | differing).items()))
    return Report(machine=name, cpus=4.0, versions=versions, code="c")


def test_a_machine_with_other_versions_is_named():
    found = [report("one"), report("two", torch="2.12.0"), report("three")]
    with pytest.raises(ClusterError, match=r"two has torch 2\.12\.0 instead of 2\.13\.0"):
        check_versions(found)
    check_versions(found[::2])


def test_a_machine_that_does_not_reach_the_store_is_named():
    cut = replace(report("two"), store="db.example: the server does not answer")
    with pytest.raises(ClusterError, match=r"two does not reach the store \(1 of 2 machines\)"):
        check_store([report("one"), cut])


def test_a_sqlite_file_is_not_run_from_outside_of_a_cluster(store, tmp_path):
    with pytest.raises(ClusterError, match="Postgres store, or --detach"):
        run_sweep(f"sqlite:///{tmp_path}/store.db", "sweep", RunOptions(address="ray://head:10001"))
