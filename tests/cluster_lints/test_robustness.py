"""No file, however wrong, makes a check fail instead of speak."""

import copy
from pathlib import Path

import pytest
import yaml

from dllm_sweep.cluster_lints import KUBE_LINTS, RAY_LINTS, software
from dllm_sweep.cluster_lints.kube_file import KubeFile
from dllm_sweep.cluster_lints.ray_file import RayFile

ROOT = Path(__file__).parents[2]
PINS = {"ray": "2.60.0"}
JOB = ROOT / "examples" / "cluster" / "kuberay-rayjob.yaml"


def as_ray(data):
    return RayFile(data, ROOT, PINS)


def as_job(data):
    return KubeFile(data, "RayJob", PINS)


def places(data, place=()):
    yield place
    children = data.items() if isinstance(data, dict) else ()
    children = enumerate(data) if isinstance(data, list) else children
    for key, child in children:
        yield from places(child, (*place, key))


def replaced(data, place, value):
    changed = copy.deepcopy(data)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


@pytest.mark.parametrize("value", [None, 7, "x", [None], [["a"]], {"a": {}}, True])
@pytest.mark.parametrize(
    ("file", "lints", "read"),
    [(ROOT / "cluster.yaml", RAY_LINTS, as_ray), (JOB, KUBE_LINTS, as_job)],
    ids=["ray up", "KubeRay"],
)
def test_a_value_of_the_wrong_kind_anywhere_is_no_crash(file, lints, read, value, monkeypatch):
    monkeypatch.setattr(software, "syntax_error", lambda command: None)
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    for place in places(data):
        if place:
            changed = read(replaced(data, place, value))
            for lint in lints.values():
                assert all(found.problem and found.fix for found in lint(changed))
