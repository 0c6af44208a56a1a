"""The cluster file is one that Ray itself accepts."""

from pathlib import Path

import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

CLUSTER = yaml.safe_load((Path(__file__).parents[1] / "cluster.yaml").read_text())


def test_ray_accepts_the_cluster_file():
    validate_config(prepare_config(CLUSTER))


def test_no_machine_type_has_more_workers_than_the_cluster_or_fewer_than_its_minimum():
    types = CLUSTER["available_node_types"].values()
    assert all(t["min_workers"] <= t["max_workers"] <= CLUSTER["max_workers"] for t in types)


def test_the_head_runs_no_trials_and_only_workers_are_spot_machines():
    types = CLUSTER["available_node_types"]
    head = types[CLUSTER["head_node_type"]]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_the_dashboard_is_not_reachable_from_outside():
    starts = CLUSTER["head_start_ray_commands"]
    assert all("0.0.0.0" not in command for command in starts)
    assert any("--dashboard-host=127.0.0.1" in command for command in starts)


def test_the_cluster_runs_the_tested_versions():
    pins = (Path(__file__).parents[1] / "constraints.txt").read_text().split()
    installed = CLUSTER["setup_commands"][0]
    for name in ("ray", "torch"):
        version = next(pin.split("==")[1] for pin in pins if pin.startswith(f"{name}=="))
        assert f"=={version}" in installed
