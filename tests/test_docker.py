"""The image is built from the tested versions, and runs as nobody special."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PINS = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
)


@pytest.fixture(scope="module")
def steps():
    """The instructions of the Dockerfile: name and the rest, continued lines joined."""
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines()]


def test_every_instruction_is_one_that_docker_knows(steps):
    known = {"FROM", "RUN", "ENV", "COPY", "USER", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in steps} <= known
    assert steps[0][0] == "FROM"


def test_the_base_names_a_cuda_version_to_the_last_number(steps):
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-runtime-ubuntu\d+\.\d+", steps[0][1])


def test_every_package_has_the_tested_version(steps):
    pinned = {}
    for _, rest in steps:
        pinned |= dict(re.findall(r"([a-z]+)(?:\[\w+\])?==([\d.]+)", rest))
    assert pinned["ray"] == PINS["ray"]
    assert pinned["torch"] == PINS["torch"]
    assert all("--constraint" in rest for _, rest in steps if "uv pip install" in rest)


def test_the_python_is_the_one_of_the_cluster_file(steps):
    cluster = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
    (python,) = {found for _, rest in steps for found in re.findall(r"--python ([\d.]+)", rest)}
    assert f"--python {python} " in cluster


def test_the_container_does_not_run_as_root(steps):
    names = [name for name, _ in steps]
    assert steps[names.index("USER")][1] not in ("root", "0")
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_everything_that_is_copied_exists_and_is_not_left_out(steps):
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    for name, rest in steps:
        for source in shlex.split(rest)[:-1] if name == "COPY" else ():
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_packages_that_are_installed_are_copied(steps):
    copied = {source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]}
    assert {"dllm_sweep", "workers", "kernels", "db", "pyproject.toml"} <= copied
