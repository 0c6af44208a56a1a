"""Lints about what is installed: the same versions on every machine, today and in a year."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from dllm_sweep.cluster_lints.findings import Found, mapping, sequence
from dllm_sweep.cluster_lints.ray_file import Command, RayFile
from dllm_sweep.cluster_lints.shell import Install, installs, syntax_error

_PIN = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?==([A-Za-z0-9_.+!]+)")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_PYTHON = re.compile(r"(?:--python|-p)[= ]\s*(?:cpython@?|python)?(\d+(?:\.\d+)*)")
_CONDA_PYTHON = re.compile(r"\bpython=+(\d+(?:\.\d+)*)")
_CODE = {"dllm_sweep", "db", "kernels", "workers", "pyproject.toml"}
_OLDEST = (3, 11)
_EXACT_PARTS = 3


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pin_of(package: str) -> tuple[str, str] | None:
    """Name and version of `name==version`; None for anything else."""
    found = _PIN.fullmatch(package)
    return (normal(found[1]), found[2]) if found and "*" not in found[2] else None


def unpinned_install(cluster: RayFile) -> Iterator[Found]:
    """Something installed in whatever version there is on that day."""
    for command in cluster.all_commands():
        for install in installs(command.text):
            for package in install.packages:
                if not _is_fixed(package, install, cluster):
                    problem = f"{package}: machines that join later may get another version"
                    fix = "write NAME==VERSION, or --constraint with a file that has it"
                    yield Found(command.place, problem, fix)
        if re.search(r"\b(conda|mamba) install\b(?!.*=)", command.text):
            yield Found(command.place, "whatever version there is that day", "write NAME=VERSION")


def _is_fixed(package: str, install: Install, cluster: RayFile) -> bool:
    if pin_of(package):
        return True
    if re.search(r"(latest|nightly|@main|@master)\b", package):
        return False
    if "://" in package:
        return re.search(r"@[0-9a-f]{12,40}\b|\d+\.\d+\.\d+", package) is not None
    if not install.constraints:
        return False
    name = _NAME.match(package)
    local = package.startswith((".", "/", "~", "$"))
    return local or (name is not None and normal(name[0]) in cluster.pins)


def missing_constraints(cluster: RayFile) -> Iterator[Found]:
    """A constraints file that no mount brings to the machines."""
    mounts = [_expanded(str(place)) for place in mapping(cluster.data.get("file_mounts"))]
    for command in cluster.all_commands():
        for install in installs(command.text):
            for file in map(_expanded, install.constraints):
                if not any(file == m or file.startswith(f"{m.rstrip('/')}/") for m in mounts):
                    problem = f"nothing in file_mounts brings {file} to the machines"
                    yield Found(command.place, problem, "mount it, or the folder it is in")


def _expanded(path: str) -> str:
    return path.replace("$HOME", "~").replace("${HOME}", "~").replace("~ubuntu", "~")


def version_disagrees(cluster: RayFile) -> Iterator[Found]:
    """A version other than the one tested, or two versions of the same package."""
    seen: dict[str, str] = {}
    for command in cluster.all_commands():
        for name, version in _pins(command):
            wanted = cluster.pins.get(name) or seen.setdefault(name, version)
            if _public(version) != wanted:
                problem = f"{name} {version}, where {wanted} is tested or installed elsewhere"
                yield Found(command.place, problem, f"write {name}=={wanted}")
    ray = cluster.pins.get("ray")
    for place, image in cluster.images():
        found = re.search(r"(?:^|/)ray(?:-ml)?:(\d+\.\d+\.\d+)", image)
        if found and ray and found[1] != ray:
            yield Found(place, f"ray {found[1]}, where {ray} is tested", f"take the tag {ray}-...")


def _pins(command: Command) -> Iterator[tuple[str, str]]:
    for install in installs(command.text):
        yield from filter(None, map(pin_of, install.packages))


def _public(version: str) -> str:
    return version.split("+")[0]


def no_installation(cluster: RayFile) -> Iterator[Found]:
    """Machines on which nothing installs Ray or this program."""
    if any(True for _ in cluster.images()):
        return
    for role, place, commands in cluster.setups():
        packages = [p for c in commands for i in installs(c.text) for p in i.packages]
        missing = [
            name
            for name, pattern in (("ray", r"ray(\[|=|$)"), ("dllm-sweep", r".*dllm[-_]sweep"))
            if not any(re.match(pattern, package) for package in packages)
        ]
        if missing:
            problem = f"nothing installs {' and '.join(missing)} on {role}"
            if place != ("setup_commands",):
                problem += ": a type's own list replaces setup_commands, too"
            yield Found(place, problem, "install it here, in the version tested")


def python_version(cluster: RayFile) -> Iterator[Found]:
    """Another Python than on the other machines: Ray refuses to talk to it."""
    if any(True for _ in cluster.images()):
        return
    versions: dict[str, Command] = {}
    for command in cluster.all_commands():
        for version in (*_PYTHON.findall(command.text), *_CONDA_PYTHON.findall(command.text)):
            versions.setdefault(version, command)
    if not versions:
        problem = "each machine takes the Python of its image; Ray wants the same everywhere"
        yield Found(("setup_commands",), problem, "make an environment with `--python 3.11.14`")
    first = next(iter(versions), "")
    for version, command in versions.items():
        wrong = _wrong_python(version, first)
        if wrong:
            yield Found(command.place, wrong, "name one full version, such as 3.11.14")


def _wrong_python(version: str, first: str) -> str | None:
    numbers = tuple(int(part) for part in version.split("."))
    if len(numbers) < _EXACT_PARTS:
        return f"Python {version} is a different one every month"
    if numbers[:2] < _OLDEST:
        return f"Python {version} is too old for dllm-sweep"
    return f"Python {version} here, {first} elsewhere" if version != first else None


def unpinned_image(cluster: RayFile) -> Iterator[Found]:
    """A container image that is another one next week, or one without CUDA."""
    for place, image in cluster.images():
        if not pinned_image(image):
            problem = f"{image} is another image next week"
            yield Found(place, problem, "name a version or a digest")
        elif "-cpu" in image and place != ("docker", "head_image"):
            problem = f"{image} has no CUDA: trials on its machines find no GPU"
            yield Found(place, problem, "take an image with CUDA, such as ...-cu130")


def pinned_image(image: str) -> bool:
    """Whether an image's name says which build it is: a digest, or a tag with a version."""
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return True
    _, _, tag = image.rpartition("/")[2].partition(":")
    return bool(re.search(r"\d+\.\d+", tag)) and "latest" not in tag and "nightly" not in tag


def piped_script(cluster: RayFile) -> Iterator[Found]:
    """A script from the net that is run as it comes."""
    for command in cluster.all_commands():
        if re.search(r"\b(curl|wget)\b[^;&]*\|\s*(sudo\s+)?(ba|z)?sh\b", command.text):
            problem = "runs whatever that address sends today"
            yield Found(command.place, problem, "install a pinned package instead")


def shell_syntax(cluster: RayFile) -> Iterator[Found]:
    """A command that no shell can read, which Ray finds out on the machine."""
    for command in cluster.all_commands():
        error = syntax_error(command.text)
        if error:
            yield Found(command.place, f"not a shell command: {error}", "mend quotes and brackets")


def missing_mount(cluster: RayFile) -> Iterator[Found]:
    """A file or folder to copy that is not there."""
    for remote, local in mapping(cluster.data.get("file_mounts")).items():
        # The token is made by a command just before `ray up`; `preparations` speaks of it.
        if str(local).endswith(".ray/auth_token"):
            continue
        path = cluster.folder / Path(str(local)).expanduser()
        if not path.exists():
            yield Found(("file_mounts", remote), f"{local} is not there", "name what exists")


def excluded_mount(cluster: RayFile) -> Iterator[Found]:
    """Files that the machines need and `rsync_exclude` keeps from them."""
    needed = {Path(file).name for file in _constraints(cluster)} | _CODE
    for index, pattern in enumerate(sequence(cluster.data.get("rsync_exclude"))):
        bare = str(pattern).strip("/")
        kept_back = sorted(name for name in needed if fnmatch(name, bare))
        if kept_back:
            problem = f"keeps {kept_back[0]} from the machines, which need it"
            yield Found(("rsync_exclude", index), problem, "name only what is not needed")


def _constraints(cluster: RayFile) -> Iterator[str]:
    for command in cluster.all_commands():
        for install in installs(command.text):
            yield from install.constraints


def code_changes_while_running(cluster: RayFile) -> Iterator[Found]:
    """Files that are copied again while a sweep runs, so that trials differ in their code."""
    if cluster.data.get("file_mounts_sync_continuously") is True:
        place = ("file_mounts_sync_continuously",)
        problem = "an edit on the head changes the code of trials that have not started"
        yield Found(place, problem, "write false")


def preparations(cluster: RayFile) -> list[str]:
    """What is left to do on this machine before `ray up`; no fault of the file."""
    mounts = map(str, mapping(cluster.data.get("file_mounts")).values())
    tokens = [local for local in mounts if local.endswith(".ray/auth_token")]
    if all((cluster.folder / Path(local).expanduser()).exists() for local in tokens):
        return []
    return ["make the token: `ray get-auth-token --generate`"]
