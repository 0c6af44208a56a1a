"""The KubeRay manifest has nothing wrong, and each way to break it is named."""

from pathlib import Path

import pytest
import yaml

from dllm_sweep import cluster_lints

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "examples" / "cluster" / "kuberay-rayjob.yaml").read_text(encoding="utf-8")

HEAD = ("spec", "rayClusterSpec", "headGroupSpec")
HEAD_POD = (*HEAD, "template", "spec")
SPOT = ("spec", "rayClusterSpec", "workerGroupSpecs", 1)
SPOT_POD = (*SPOT, "template", "spec")
SPOT_BOX = (*SPOT_POD, "containers", 0)
DEMAND = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
GPU = "nvidia.com/gpu"
GONE = object()

MUTATIONS = {
    "an old interface": ([(("apiVersion",), "ray.io/v1alpha1")], "api-version"),
    "no name": ([(("metadata", "name"), GONE)], "no-name"),
    "the cluster stays": ([(("spec", "shutdownAfterJobFinishes"), False)], "not-shut-down"),
    "the cluster stays by default": (
        [(("spec", "shutdownAfterJobFinishes"), GONE)],
        "not-shut-down",
    ),
    "no time to read logs": ([(("spec", "ttlSecondsAfterFinished"), GONE)], "not-shut-down"),
    "one lost head ends it": ([(("spec", "backoffLimit"), GONE)], "backoff-limit"),
    "it never ends": ([(("spec", "backoffLimit"), 1000)], "backoff-limit"),
    "another program": ([(("spec", "entrypoint"), "python train.py")], "entrypoint"),
    "a Ray beside the cluster": (
        [(("spec", "entrypoint"), "dllm-sweep launch /sweep/sweep.yaml")],
        "entrypoint",
    ),
    "no store": ([((*HEAD_POD, "containers", 0, "env"), [])], "store-on-pod-disk"),
    "the store's password in the file": (
        [
            (
                (*HEAD_POD, "containers", 0, "env", 0),
                {"name": "DLLM_SWEEP_STORE", "value": "postgresql://me:pass@db/sweeps"},
            )
        ],
        "secret-in-file",
    ),
    "a token in the file": (
        [((*SPOT_BOX, "env"), [{"name": "HF_TOKEN", "value": "secret"}])],
        "secret-in-file",
    ),
    "no token": ([(("spec", "rayClusterSpec", "authOptions"), GONE)], "no-token-auth"),
    "the token turned off": (
        [(("spec", "rayClusterSpec", "authOptions", "mode"), "disabled")],
        "no-token-auth",
    ),
    "open to the outside": ([((*HEAD, "serviceType"), "LoadBalancer")], "public-service"),
    "an ingress": ([((*HEAD, "enableIngress"), True)], "public-service"),
    "images that change": (
        [
            ((*group, "containers", 0, "image"), "registry.example.com/dllm-sweep:latest")
            for group in (HEAD_POD, (*DEMAND, "template", "spec"), SPOT_POD)
        ],
        "unpinned-image",
    ),
    "another image on the workers": (
        [((*SPOT_BOX, "image"), "registry.example.com/dllm-sweep:0.0.9-ray2.60.0")],
        "images-differ",
    ),
    "another Ray than the image's": (
        [(("spec", "rayClusterSpec", "rayVersion"), "2.50.0")],
        "ray-version",
    ),
    "no version of Ray": ([(("spec", "rayClusterSpec", "rayVersion"), GONE)], "ray-version"),
    "fewer GPUs asked for than allowed": (
        [((*SPOT_BOX, "resources", "limits", GPU), 4)],
        "gpu-limits",
    ),
    "GPUs asked for but not allowed": (
        [
            ((*SPOT_BOX, "resources", "limits", GPU), GONE),
        ],
        "gpu-limits",
    ),
    "no limit of memory": ([((*SPOT_BOX, "resources", "limits", "memory"), GONE)], "gpu-limits"),
    "no workers": ([(("spec", "rayClusterSpec", "workerGroupSpecs"), [])], "no-workers"),
    "replicas outside their bounds": ([((*SPOT, "replicas"), 40)], "min-above-max"),
    "a minimum above the maximum": ([((*SPOT, "minReplicas"), 40)], "min-above-max"),
    "no maximum": ([((*SPOT, "maxReplicas"), GONE)], "min-above-max"),
    "trials on the head": ([((*HEAD, "rayStartParams"), {})], "head-takes-trials"),
    "a GPU on the head": (
        [((*HEAD_POD, "containers", 0, "resources", "limits", GPU), 1)],
        "head-takes-trials",
    ),
    "the head on a spot machine": (
        [((*HEAD_POD, "nodeSelector"), {"cloud.google.com/gke-spot": "true"})],
        "head-on-spot",
    ),
    "spot workers that are placed nowhere": (
        [((*SPOT_POD, "tolerations"), [])],
        "spot-without-toleration",
    ),
    "a number where text must be": ([((*HEAD, "rayStartParams", "num-cpus"), 0)], "not-text"),
    "a number in the environment": (
        [((*SPOT_BOX, "env"), [{"name": "OMP_NUM_THREADS", "value": 8}])],
        "not-text",
    ),
    "memory in gigabytes": ([((*SPOT_BOX, "resources", "limits", "memory"), "64")], "memory-unit"),
    "a container that owns its machine": (
        [((*SPOT_BOX, "securityContext"), {"privileged": True})],
        "privileged-container",
    ),
    "root in the container": ([((*SPOT_POD, "securityContext"), GONE)], "privileged-container"),
    "the machine's network": ([((*SPOT_POD, "hostNetwork"), True)], "privileged-container"),
    "idle pods that stay": (
        [(("spec", "rayClusterSpec", "enableInTreeAutoscaling"), GONE)],
        "idle-timeout",
    ),
    "idle pods that go at once": (
        [(("spec", "rayClusterSpec", "autoscalerOptions", "idleTimeoutSeconds"), 0)],
        "idle-timeout",
    ),
}


def changed(*changes):
    data = yaml.safe_load(TEXT)
    for place, value in changes:
        at = data
        for key in place[:-1]:
            at = at[key]
        if value is GONE:
            del at[place[-1]]
        else:
            at[place[-1]] = value
    return yaml.safe_dump(data)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    return tmp_path


def lints_of(folder, text):
    (folder / "job.yaml").write_text(text, encoding="utf-8")
    return cluster_lints.check(folder / "job.yaml").findings


def test_the_manifest_has_nothing_wrong(folder):
    assert lints_of(folder, TEXT) == ()
    assert lints_of(folder, changed()) == ()


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_way_to_break_the_manifest_is_named(folder, name):
    changes, lint = MUTATIONS[name]
    findings = lints_of(folder, changed(*changes))
    assert {finding.lint for finding in findings} == {lint}, findings


def test_every_check_of_manifests_has_a_way_to_break_it():
    assert {lint for _, lint in MUTATIONS.values()} == set(cluster_lints.KUBE_LINTS)


def test_manifests_beside_other_documents_are_found_with_the_lines_of_the_whole_file(folder):
    secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: other}\n---\n"
    (finding,) = lints_of(
        folder, secret + TEXT.replace("backoffLimit: 3\n  submitter", "submitter")
    )
    assert finding.lint == "backoff-limit"
    assert finding.line is not None
    assert finding.line > 4


@pytest.mark.parametrize(
    ("kind", "key"), [("RayCluster", "spec"), ("RayService", "rayClusterConfig")]
)
def test_the_other_kinds_of_manifests_are_checked_too(folder, kind, key):
    data = yaml.safe_load(TEXT)
    cluster = data["spec"]["rayClusterSpec"] | {"rayVersion": "2.50.0"}
    data |= {"kind": kind, "spec": cluster if key == "spec" else {key: cluster}}
    lints = {finding.lint for finding in lints_of(folder, yaml.safe_dump(data))}
    assert lints == {"ray-version"}
