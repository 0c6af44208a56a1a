"""What the shell commands of a cluster file do, as far as the lints need it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_VALUED = {
    "-c",
    "--constraint",
    "-r",
    "--requirement",
    "-i",
    "--index-url",
    "--extra-index-url",
    "-f",
    "--find-links",
    "-p",
    "--python",
    "-t",
    "--target",
    "--prefix",
}


@dataclass(frozen=True)
class Install:
    """One `pip install`.

    Attributes:
        packages: What is installed, as written: `ray[default]==2.60.0`, `$HOME/checkout`.
        constraints: Files with versions that it heeds.
    """

    packages: tuple[str, ...]
    constraints: tuple[str, ...]


def option(command: str, name: str) -> str | None:
    """The value of `--name=value` or `--name value` in a command; None if it is not there."""
    found = re.search(rf"(?:^|\s){re.escape(name)}(?:=|\s+)([^\s;&|]+)", command)
    return found[1].strip("\"'") if found else None


def ray_starts(command: str) -> list[str]:
    """The parts of a command that run `ray start`."""
    return [part for part in _parts(command) if re.search(r"\bray\s+start\b", part)]


def has_flag(command: str, name: str) -> bool:
    """Whether a command has the flag `name`."""
    return re.search(rf"(?:^|\s){re.escape(name)}(?:[\s=]|$)", command) is not None


def variable(command: str, name: str) -> str | None:
    """What a command sets the environment variable `name` to; None if it does not set it."""
    found = re.search(rf"(?:^|[\s;&'\"]){name}=(\"[^\"]*\"|'[^']*'|[^\s;&|'\"]*)", command)
    return found[1].strip("\"'") if found else None


def installs(command: str) -> Iterator[Install]:
    """The `pip install`s of a command, in any spelling."""
    for part in _parts(command):
        tokens = _tokens(part)
        if "install" in tokens and any(re.search(r"(^|/)pip3?$", token) for token in tokens):
            yield _install(tokens[tokens.index("install") + 1 :])


def syntax_error(command: str) -> str | None:
    """What bash has against a command; None if nothing, or if there is no bash here."""
    bash = shutil.which("bash")
    if bash is None:
        return None
    done = subprocess.run([bash, "-n", "-c", command], capture_output=True, text=True, check=False)
    return done.stderr.strip().splitlines()[0] if done.returncode else None


def _parts(command: str) -> list[str]:
    return [part.strip() for part in re.split(r"&&|\|\||[;|\n]", command) if part.strip()]


def _tokens(part: str) -> list[str]:
    try:
        return shlex.split(part)
    except ValueError:
        return part.split()


def _install(tokens: Sequence[str]) -> Install:
    packages: list[str] = []
    constraints: list[str] = []
    rest = iter(tokens)
    for token in rest:
        name, _, value = token.partition("=") if token.startswith("--") else (token, "", "")
        if name in _VALUED:
            value = value or next(rest, "")
            if name in ("-c", "--constraint", "-r", "--requirement"):
                constraints.append(value)
        elif not token.startswith("-"):
            packages.append(token)
    return Install(tuple(packages), tuple(constraints))
