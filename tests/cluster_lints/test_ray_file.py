"""The cluster file has nothing wrong, and each way to break it that Ray lets pass is named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dllm_sweep import cluster_lints
from dllm_sweep.cli import main
from dllm_sweep.errors import InputError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
LOCAL = """\
cluster_name: own
max_workers: 2
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2, 10.0.0.3]}
auth: {ssh_user: me}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkout as `ray up` would copy it, in a home with a token."""
    (tmp_path / "constraints.txt").write_bytes((ROOT / "constraints.txt").read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a token")
    return tmp_path


def lints_of(folder, text):
    (folder / "cluster.yaml").write_text(text, encoding="utf-8")
    return cluster_lints.check(folder / "cluster.yaml").findings


def changed(*changes):
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return text


MUTATIONS = {
    entry["name"]: ([(c["old"], c["new"]) for c in entry["changes"]], entry["check"])
    for entry in yaml.safe_load((ROOT / "tests" / "data" / "cluster-mutations.yaml").read_text())
}


def test_the_cluster_file_has_nothing_wrong(folder):
    assert lints_of(folder, TEXT) == ()
    assert cluster_lints.check(ROOT / "cluster.yaml").findings == ()


@pytest.mark.parametrize("name", MUTATIONS)
def test_each_way_to_break_it_that_ray_lets_pass_is_named(folder, name):
    changes, lint = MUTATIONS[name]
    findings = lints_of(folder, changed(*changes))
    assert {finding.lint for finding in findings} == {lint}, findings
    for finding in findings:
        assert finding.problem
        assert finding.line or lint == "not-yaml" or "max_workers" in finding.place


def test_every_check_of_these_files_has_a_way_to_break_it():
    named = {lint for _, lint in MUTATIONS.values()}
    assert set(cluster_lints.RAY_LINTS) - named == {"local-machines"}


def test_each_of_these_ways_gets_past_ray(folder):
    from dllm_sweep.cluster_lints.validator import refused_by_ray

    for name, (changes, lint) in MUTATIONS.items():
        if lint != "not-yaml":
            data = yaml.safe_load(changed(*changes))
            assert list(refused_by_ray(data)) == [], name


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("max_workers: 16", "max_worker: 16"), "max_worker"),
        (("head_node_type: head", "head_node_type: boss"), "head_node_type"),
        (("{CPU: 16, GPU: 1}\n    labels: {gpu: l40s, market: spot}", "{GPU: '8'}"), "integer"),
        (("type: aws", "type: amazon"), "amazon"),
    ],
)
def test_what_ray_itself_refuses_is_reported_in_its_words(folder, change, word):
    findings = lints_of(folder, changed(change))
    refused = [finding for finding in findings if finding.lint == cluster_lints.REFUSED]
    assert len(refused) == 1
    assert word in refused[0].problem


def test_everything_left_out_is_everything_that_ray_fills_in_badly(folder):
    text = "cluster_name: bare\nprovider: {type: aws, region: us-east-1}\n"
    lints = {finding.lint for finding in lints_of(folder, text)}
    assert {"no-max-workers", "start-commands", "no-token-file", "python-version"} <= lints


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("max_workers: 2", "max_workers: 5", "worker_ips names 2"),
        ("10.0.0.3]", "10.0.0.2]", "named twice"),
        ("10.0.0.2,", "10.0.0.1,", "named twice"),
        ("head_ip: 10.0.0.1, ", "", "no head_ip"),
        ("[10.0.0.2, 10.0.0.3]", "[]", "no worker_ips"),
    ],
)
def test_own_machines_that_do_not_add_up_are_named(folder, old, new, problem):
    assert old in LOCAL
    findings = lints_of(folder, LOCAL.replace(old, new))
    assert any(f.lint == "local-machines" and problem in f.problem for f in findings)


def test_own_machines_that_add_up_have_no_such_problem(folder):
    assert "local-machines" not in {f.lint for f in lints_of(folder, LOCAL)}


@pytest.mark.parametrize(
    ("provider", "node_config", "gpus", "lint"),
    [
        ("gcp", {"machineType": "g2-standard-24"}, 1, "gpu-count"),
        ("gcp", {"machineType": "a3-highgpu-8g"}, 8, None),
        ("gcp", {"machineType": "big-machine"}, 1, "unknown-machine"),
        (
            "gcp",
            {"machineType": "n1-standard-8", "guestAccelerators": [{"acceleratorCount": 2}]},
            1,
            "gpu-count",
        ),
        ("azure", {"azure_arm_parameters": {"vmSize": "Standard_NC48ads_A100_v4"}}, 1, "gpu-count"),
        ("azure", {"azure_arm_parameters": {"vmSize": "NC6"}}, 1, "unknown-machine"),
        ("aws", {"InstanceType": "p5.48xlarge"}, 8, None),
        ("aws", {"InstanceType": "g4ad.xlarge"}, 1, "unknown-machine"),
    ],
)
def test_the_machines_of_three_clouds_are_known(folder, provider, node_config, gpus, lint):
    data = yaml.safe_load(TEXT)
    data["provider"] = {"type": provider, "region": "us-central1", "project_id": "p"}
    data["available_node_types"]["gpu_spot"] |= {
        "node_config": node_config,
        "resources": {"CPU": 1, "GPU": gpus},
        "labels": {},
    }
    found = [f for f in lints_of(folder, yaml.safe_dump(data)) if "gpu_spot" in f.place]
    assert (
        lint in {f.lint for f in found}
        if lint
        else not {"gpu-count", "unknown-machine"} & {f.lint for f in found}
    )


def test_the_names_of_rays_private_check_still_exist():
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(TEXT)))


def test_the_command_lists_what_is_wrong_with_its_line_and_exits_with_1(folder):
    file = folder / "cluster.yaml"
    file.write_text(changed(("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0")))
    done = CliRunner().invoke(main, ["cluster", "check", str(file), "--format", "json"])
    (row,) = json.loads(done.stdout)
    assert done.exit_code == 1
    assert row["check"] == "public-dashboard"
    line = file.read_text().splitlines()[row["line"] - 1]
    assert line.strip().startswith("-")


def test_a_check_can_be_left_out_but_only_one_that_exists(folder):
    file = folder / "cluster.yaml"
    file.write_text(changed(("idle_timeout_minutes: 10", "idle_timeout_minutes: 0")))
    left_out = ["cluster", "check", str(file), "--ignore", "idle-timeout"]
    assert CliRunner().invoke(main, left_out).exit_code == 0
    wrong = CliRunner().invoke(main, ["cluster", "check", str(file), "--ignore", "idle-timout"])
    assert wrong.exit_code == 2
    assert "did you mean 'idle-timeout'" in wrong.output


def test_a_token_still_to_be_made_is_said_but_is_no_fault_of_the_file(folder):
    (folder / ".ray" / "auth_token").unlink()
    file = folder / "cluster.yaml"
    file.write_text(TEXT)
    done = CliRunner().invoke(main, ["cluster", "check", str(file)])
    assert done.exit_code == 0
    assert "ray get-auth-token --generate" in done.output


def test_a_file_that_describes_no_cluster_is_refused(folder):
    file = folder / "other.yaml"
    file.write_text("models: [toy]\n")
    with pytest.raises(InputError, match="describes no cluster"):
        cluster_lints.check(file)


def test_every_check_is_explained_in_the_docs():
    page = (ROOT / "docs" / "clusters" / "checks.md").read_text(encoding="utf-8")
    names = {*cluster_lints.RAY_LINTS, *cluster_lints.KUBE_LINTS, "refused-by-ray", "not-yaml"}
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_checking_needs_no_torch():
    code = (
        "import sys\nfrom pathlib import Path\nfrom dllm_sweep import cluster_lints\n"
        "cluster_lints.check(Path('cluster.yaml'))\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False"
