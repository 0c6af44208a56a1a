"""Lints about the head: it holds the controller and perhaps the store, and must not vanish."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dllm_sweep.cluster_lints.findings import Found
from dllm_sweep.cluster_lints.ray_file import HEAD_STARTS, RayFile
from dllm_sweep.cluster_lints.shell import has_flag, option, ray_starts

_OPEN_FILES = 8192


def head_takes_trials(cluster: RayFile) -> Iterator[Found]:
    """A head on which Ray would place trials, which can take the whole cluster down."""
    for head in cluster.heads:
        for name in ("CPU", "GPU"):
            count = head.resources.get(name)
            if count:
                problem = f"with {count} {name} the head takes trials, and one can take it down"
                yield Found(head.place("resources", name), problem, f"write {name}: 0")
            elif name not in head.resources:
                problem = f"without {name}: 0 Ray counts the head's own and places trials there"
                yield Found(head.place("resources"), problem, f"add {name}: 0")
    for command in cluster.commands(HEAD_STARTS):
        for start in ray_starts(command.text):
            for name in ("--num-cpus", "--num-gpus"):
                if option(start, name) not in (None, "0"):
                    problem = f"{name} lets trials onto the head"
                    yield Found(command.place, problem, f"leave {name} out")


def head_on_gpu_machine(cluster: RayFile) -> Iterator[Found]:
    """A head with a GPU that nothing will use."""
    for head in cluster.heads:
        machine = head.machine
        if machine is not None and machine.gpus:
            problem = f"{machine.name} has {machine.gpus} GPUs that nothing uses on a head"
            yield Found(head.place("node_config"), problem, "take a machine without a GPU")


def head_on_spot(cluster: RayFile) -> Iterator[Found]:
    """A head that the cloud may take away."""
    for head in cluster.heads:
        if head.spot:
            problem = "the cloud may take the head away, and the whole cluster with it"
            yield Found(head.place("node_config"), problem, "ask for an on-demand machine")


def head_as_worker(cluster: RayFile) -> Iterator[Found]:
    """More machines of the head's type, which then count as workers."""
    for head in cluster.heads:
        for key in ("min_workers", "max_workers"):
            count = head.data.get(key)
            if isinstance(count, int) and count > 0:
                problem = f"{count} more machines like the head, on which no trial can run"
                yield Found(head.place(key), problem, f"write {key}: 0")


def no_autoscaling_config(cluster: RayFile) -> Iterator[Found]:
    """A head that is started without what makes it add workers."""
    for command in cluster.commands(HEAD_STARTS):
        for start in ray_starts(command.text):
            if not has_flag(start, "--head"):
                yield Found(command.place, "the head joins a cluster", "add --head")
            elif option(start, "--autoscaling-config") != "~/ray_bootstrap_config.yaml":
                problem = "without its own configuration the head never adds a worker"
                fix = "add --autoscaling-config=~/ray_bootstrap_config.yaml"
                yield Found(command.place, problem, fix)
            elif has_flag(start, "--no-monitor"):
                yield Found(command.place, "nothing adds workers then", "leave --no-monitor out")


def address_mismatch(cluster: RayFile) -> Iterator[Found]:
    """Workers that look for the head elsewhere."""
    ports = [
        option(start, "--port") or "6379"
        for command in cluster.commands(HEAD_STARTS)
        for start in ray_starts(command.text)
    ]
    for command in cluster.commands("worker_start_ray_commands"):
        for start in ray_starts(command.text):
            wanted = f"$RAY_HEAD_IP:{ports[0] if ports else '6379'}"
            address = option(start, "--address")
            same = address is not None and address.replace("{", "").replace("}", "") == wanted
            if not same or has_flag(start, "--head"):
                problem = f"workers start with address {address}, the head listens at {wanted}"
                yield Found(command.place, problem, f"write --address={wanted} and no --head")


def lonely_head(cluster: RayFile) -> Iterator[Found]:
    """A head that only itself can reach, or that takes no jobs."""
    for command in cluster.commands(HEAD_STARTS):
        for start in ray_starts(command.text):
            address = option(start, "--node-ip-address")
            if address in ("127.0.0.1", "localhost"):
                problem = f"no worker reaches a head at {address}"
                yield Found(command.place, problem, "leave --node-ip-address out")
            if option(start, "--include-dashboard") in ("false", "False", "0"):
                problem = "without the dashboard's process the head takes no jobs (--detach)"
                yield Found(command.place, problem, "leave --include-dashboard out")


def starts(cluster: RayFile) -> Iterator[Found]:
    """Start commands that are left out, do not start Ray, wait for ever or fail the second time."""
    for key in (HEAD_STARTS, "worker_start_ray_commands"):
        if key not in cluster.data:
            problem = "Ray's own commands open the dashboard to everybody and know no token"
            yield Found((key,), problem, "write the commands as in the cluster.yaml shipped")
            continue
        commands = list(cluster.commands(key))
        begun = [c for c in commands if ray_starts(c.text)]
        if not begun:
            yield Found((key,), "nothing starts Ray", "add `ray start ...`")
        elif not any("ray stop" in command.text for command in commands):
            problem = "`ray up` on a running cluster fails: Ray is started already"
            yield Found((key,), problem, "begin with `ray stop`")
        for command in begun:
            if has_flag(command.text, "--block"):
                yield Found(command.place, "--block never returns", "leave --block out")


def no_ulimit(cluster: RayFile) -> Iterator[Found]:
    """Ray started with the few open files that a login shell allows."""
    if any("ulimits" in option_text or "nofile" in option_text for option_text in _runs(cluster)):
        return
    for key in (HEAD_STARTS, "worker_start_ray_commands"):
        for command in cluster.commands(key):
            limit = re.search(r"ulimit -S?n\s+(\d+)", command.text)
            enough = limit is not None and int(limit[1]) >= _OPEN_FILES
            if ray_starts(command.text) and not enough:
                problem = "Ray needs more open files than that or than a login shell allows"
                yield Found(command.place, problem, "write `ulimit -n 65536; ray start ...`")


def _runs(cluster: RayFile) -> list[str]:
    docker = cluster.data.get("docker")
    options = docker.get("run_options", []) if isinstance(docker, dict) else []
    return [str(entry) for entry in options]
