"""Lints about who else could run code on the cluster: Ray runs whatever reaches it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found, inside, mapping, sequence
from dllm_sweep.cluster_lints.ray_file import HEAD_STARTS, WORKER_STARTS, RayFile
from dllm_sweep.cluster_lints.shell import has_flag, option, ray_starts, variable
from dllm_sweep.yaml_places import Place

TOKEN_FILE = "~/.ray/auth_token"
"""Where Ray looks for the token on every machine."""

_LOCAL = {"127.0.0.1", "localhost", "::1"}
_EVERYBODY = {"0.0.0.0/0", "::/0"}
_SSH = 22
_SECRETS = (
    (re.compile(r"postgres(?:ql)?(?:\+\w+)?://[^\s:@/]+:(?!\$)[^\s@/]+@"), "a database password"),
    (re.compile(r"RAY_AUTH_TOKEN=[\"']?(?![\"'$])\S"), "Ray's token"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), "a Hugging Face token"),
    (re.compile(r"\bAKIA[0-9A-Z]{16}\b"), "an AWS key"),
    (re.compile(r"(?:SECRET|PASSWORD|PGPASSWORD)\w*=[\"']?(?![\"'$])\S", re.I), "a password"),
)


def public_dashboard(cluster: RayFile) -> Iterator[Found]:
    """A dashboard that starts jobs for whoever reaches it."""
    for command in cluster.commands(HEAD_STARTS):
        for start in ray_starts(command.text):
            host = option(start, "--dashboard-host")
            if host is not None and host not in _LOCAL:
                problem = f"the dashboard listens at {host} and starts jobs for who reaches it"
                yield Found(command.place, problem, "write --dashboard-host=127.0.0.1")


def no_token_auth(cluster: RayFile) -> Iterator[Found]:
    """A node that is started without token authentication, or with another kind of it."""
    for key in (HEAD_STARTS, WORKER_STARTS):
        for command in cluster.commands(key):
            mode = variable(command.text, "RAY_AUTH_MODE")
            if ray_starts(command.text) and mode != "token":
                said = "no RAY_AUTH_MODE" if mode is None else f"RAY_AUTH_MODE={mode}"
                problem = f"{said}: whoever reaches a port can run code on the cluster"
                yield Found(command.place, problem, "write `RAY_AUTH_MODE=token ray start ...`")


def no_token_file(cluster: RayFile) -> Iterator[Found]:
    """No token on the machines, or not where Ray looks for it."""
    mounted = mapping(cluster.data.get("file_mounts"))
    if any(_is_token(place) for place in mounted):
        return
    if any(_brings_token(command.text) for command in cluster.all_commands()):
        return
    problem = f"nothing brings the token to {TOKEN_FILE} of every machine"
    yield Found(("file_mounts",), problem, f"add {TOKEN_FILE}: {TOKEN_FILE}")


def _is_token(place: object) -> bool:
    return str(place).replace("$HOME", "~").endswith("/.ray/auth_token")


def _brings_token(command: str) -> bool:
    path = variable(command, "RAY_AUTH_TOKEN_PATH")
    return path is not None or re.search(r">\s*\S*\.ray/auth_token", command) is not None


def secret_in_file(cluster: RayFile) -> Iterator[Found]:
    """A password or token written down where everybody who has the file reads it."""
    for place, value in _texts(cluster.data, ()):
        for pattern, what in _SECRETS:
            if pattern.search(value):
                fix = "take it out of the file: from a mounted file or the environment"
                yield Found(place, f"{what} is written here for all who read the file", fix)
                break


def _texts(value: object, place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from _texts(child, (*place, str(key)))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _texts(child, (*place, index))


def open_to_the_world(cluster: RayFile) -> Iterator[Found]:
    """Ports that are opened to every address."""
    rules = sequence(inside(cluster.data, "provider", "security_group", "IpPermissions"))
    for index, rule in enumerate(rules):
        ranges = [
            *sequence(mapping(rule).get("IpRanges")),
            *sequence(mapping(rule).get("Ipv6Ranges")),
        ]
        addresses = {str(value) for entry in ranges for value in mapping(entry).values()}
        ports = {mapping(rule).get("FromPort"), mapping(rule).get("ToPort")}
        if addresses & _EVERYBODY and ports != {_SSH}:
            place: Place = ("provider", "security_group", "IpPermissions", index)
            problem = "these ports are open to every address in the world"
            yield Found(place, problem, "name your own addresses; workers need no rule")


def privileged_container(cluster: RayFile) -> Iterator[Found]:
    """Containers that are run with more rights than they need."""
    for key in ("run_options", "head_run_options", "worker_run_options"):
        for index, value in enumerate(sequence(inside(cluster.data, "docker", key))):
            if has_flag(str(value), "--privileged"):
                problem = "a privileged container owns its machine"
                yield Found(("docker", key, index), problem, "leave --privileged out")


def ssh_key(cluster: RayFile) -> Iterator[Found]:
    """Keys that are named on one side only, which Ray finds out in the middle of `ray up`."""
    named = inside(cluster.data, "auth", "ssh_private_key")
    if cluster.provider != "aws":
        return
    for kind in cluster.types:
        has_key = "KeyName" in kind.node_config
        if named and not has_key and "UserData" not in kind.node_config:
            problem = "auth names a private key, this machine is started without its KeyName"
            yield Found(kind.place("node_config"), problem, "add KeyName, or drop the private key")
        elif has_key and not named:
            problem = "KeyName is named, but not the private key that goes with it"
            yield Found(kind.place("node_config", "KeyName"), problem, "add auth.ssh_private_key")
