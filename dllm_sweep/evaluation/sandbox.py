"""Running programs that a model has written, in a process of their own with limits.

It keeps an evaluation alive and the machine tidy. It is no security boundary against somebody
who sets out to break it: the program runs as the same user on the same kernel. docs/evaluation.md
says what is stopped.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HARNESS = Path(__file__).with_name("sandbox_child.py")
_REASON_BYTES = 4096
_MOST_OPEN_FILES = 32
_MOST_WRITTEN_BYTES = 2**20


@dataclass(frozen=True)
class SandboxResult:
    """What became of a program.

    Attributes:
        ok: Whether it ran to its end without an exception.
        reason: `ok`, `timeout`, the exception's name and text, or how the process ended.
    """

    ok: bool
    reason: str


def run_tests(program: str, tests: str, *, timeout_s: float = 5.0, memory_mib: int = 512) -> bool:
    """Tell whether `tests` pass after `program`: both run to their end without an exception.

    A program that leaves early, even with exit code 0, has not passed.

    Args:
        program: Python source; the standard library is all it can import.
        tests: Python source with assertions, run in the program's namespace.
        timeout_s: Wall-clock seconds until the program is killed.
        memory_mib: Limit of its address space in MiB.
    """
    return _run(program, tests, timeout_s, memory_mib).ok


def run_program(program: str, *, timeout_s: float = 5.0, memory_mib: int = 512) -> SandboxResult:
    """Run Python source in a fresh process; its output is discarded, its input is empty.

    Args:
        program: Python source; the standard library is all it can import.
        timeout_s: Wall-clock seconds until the program is killed.
        memory_mib: Limit of its address space in MiB.
    """
    return _run(program, "", timeout_s, memory_mib)


def _run(program: str, tests: str, timeout_s: float, memory_mib: int) -> SandboxResult:
    # The child reports by a token that it is told: an exit code alone could be the program's own.
    token = secrets.token_hex(16)
    limits = {
        "RLIMIT_AS": memory_mib * 2**20,
        "RLIMIT_CPU": math.ceil(timeout_s) + 1,
        "RLIMIT_FSIZE": _MOST_WRITTEN_BYTES,
        "RLIMIT_NOFILE": _MOST_OPEN_FILES,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CORE": 0,
    }
    order = {
        "program": program,
        "tests": tests,
        "token": token,
        "limits": limits,
        "alarm_s": math.ceil(timeout_s) + 1,
    }
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryDirectory(prefix="dllm-sweep-") as folder:
            child = _start(folder, writing)
            ended = _finish(child, json.dumps(order).encode(), timeout_s)
        return _verdict(ended, child.returncode, _read(reading), token)
    finally:
        os.close(reading)


def _start(folder: str, report_to: int) -> subprocess.Popen[bytes]:
    # -I and -S leave out the user's environment, site-packages and the current folder.
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_HARNESS), str(report_to)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            pass_fds=(report_to,),
            start_new_session=True,
        )
    finally:
        os.close(report_to)


def _finish(child: subprocess.Popen[bytes], order: bytes, timeout_s: float) -> bool:
    """Wait for the child, kill whatever it leaves; tell whether it ended in time."""
    try:
        child.communicate(order, timeout=timeout_s)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        _kill_group(child.pid)
        child.communicate()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left in it


def _read(pipe: int) -> str:
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, _REASON_BYTES).decode(errors="replace")
    except BlockingIOError:
        return ""


def _verdict(ended: bool, code: int, report: str, token: str) -> SandboxResult:
    if not ended:
        return SandboxResult(False, "timeout")
    told, _, reason = report.partition("\n")
    if told == token:
        return SandboxResult(reason == "ok", reason)
    return SandboxResult(False, f"ended early with exit code {code}")
