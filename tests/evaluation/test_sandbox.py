import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dllm_sweep.evaluation.sandbox import run_program, run_tests

ADD = "def add(a, b):\n    return a + b\n"


def test_a_right_function_passes():
    assert run_tests(ADD, "assert add(2, 3) == 5")


def test_a_wrong_function_fails():
    assert not run_tests("def add(a, b):\n    return a - b\n", "assert add(2, 3) == 5")


@pytest.mark.parametrize(
    "leave",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import atexit, os; atexit.register(os._exit, 0); raise KeyboardInterrupt",
    ],
)
def test_leaving_before_the_tests_is_no_success(leave):
    assert not run_tests(ADD + leave, "assert add(2, 3) == 6")


def test_printing_a_success_is_no_success():
    program = (
        "import os\nfor fd in range(3, 32):\n    try: os.write(fd, b'ok')\n    except OSError: 0\n"
    )
    assert not run_tests(program, "assert False")


def test_an_endless_loop_ends_at_the_wall_limit():
    started = time.monotonic()
    result = run_program("while True: pass", timeout_s=0.5)
    assert result.reason == "timeout"
    assert time.monotonic() - started < 5


def test_sleeping_ends_at_the_wall_limit():
    assert run_program("import time; time.sleep(60)", timeout_s=0.5).reason == "timeout"


@pytest.mark.parametrize(
    "program", ["x = bytearray(10**9)", "x = []\nwhile True: x.append('a' * 10**6 + str(len(x)))"]
)
def test_a_memory_hog_is_stopped(program):
    assert run_program(program, memory_mib=128).reason.startswith("MemoryError")


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.execv('/bin/true', ['true'])",
        "import multiprocessing as m; p = m.Process(target=print); p.start(); p.join()",
        "import socket; socket.socket()",
        "import os; os.kill(os.getppid(), 9)",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_processes_sockets_signals_and_foreign_code_are_refused(program):
    assert not run_program(program).ok


@pytest.mark.parametrize(
    "program",
    [
        "from multiprocessing import util; util.spawnv_passfds(b'/bin/true', [b'true'], ())",
        "import _socket; _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)",
        "import _socket; _socket.getaddrinfo('localhost', 80)",
        "import asyncio; asyncio.run(asyncio.sleep(0))",
        "from _ctypes import dlopen",
    ],
)
def test_ways_around_the_interpreters_hook_are_shut_too(program):
    assert run_program(program).reason.startswith(("PermissionError", "ImportError"))


def test_threads_work():
    program = "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()"
    assert run_program(program).ok


@pytest.mark.parametrize("make", ["open(str(n), 'w').close()", "os.mkdir(str(n))"])
def test_a_disk_cannot_be_filled_with_many_files_or_folders(make):
    program = f"import os\nfor n in range({{count}}): {make}"
    assert run_program(program.format(count=50)).ok
    assert "no more than 200" in run_program(program.format(count=300)).reason


def test_a_program_is_no_main_module():
    """As in the published runners: what stands behind `if __name__ == "__main__"` is not run."""
    assert run_tests("if __name__ == '__main__': raise SystemExit", "assert True")


def test_files_outside_its_folder_cannot_be_written_changed_or_removed(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    for program in (
        f"open({str(kept)!r}, 'w').write('x')",
        f"import os; os.remove({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, 'mine')",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.symlink({str(kept)!r}, 'link')",
        f"import os; os.chdir({str(tmp_path)!r})",
        f"import os; fd = os.open({str(tmp_path)!r}, 0); os.open('kept', 2, dir_fd=fd)",
    ):
        assert not run_program(program).ok, program
    assert kept.read_text() == "as it was"


@pytest.mark.parametrize(
    "change",
    [
        "import sqlite3; sqlite3.connect({path!r}).execute('create table a (b)')",
        "import sqlite3; d = sqlite3.connect(':memory:'); d.execute('attach {path!r} as f');"
        " d.execute('create table f.a (b)')",
        "import os; os.mkfifo({path!r})",
        "import os; os.mknod({path!r})",
        "from multiprocessing import shared_memory as s; s.SharedMemory({name!r}, True, 10)",
    ],
)
def test_changes_outside_that_the_interpreters_hook_does_not_see_are_refused(change, tmp_path):
    path = tmp_path / f"{tmp_path.name}-{os.getpid()}"
    assert not run_program(change.format(path=str(path), name=path.name)).ok
    assert not path.exists()
    assert not Path("/dev/shm", path.name).exists()


def test_its_own_folder_can_be_written_and_is_gone_afterwards():
    program = (
        "import os\nopen('note', 'w').write('x')\n"
        "assert open('note').read() == 'x'\nraise ValueError(os.getcwd())"
    )
    folder = run_program(program).reason.removeprefix("ValueError: ")
    assert Path(folder).name.startswith("dllm-sweep-")
    assert not Path(folder).exists()


def test_temporary_folders_can_be_used():
    program = (
        "import os, tempfile\ntempfile.tempdir = os.getcwd()\n"
        "with tempfile.TemporaryDirectory() as f:\n"
        "    os.mkdir(f + '/a')\n    open(f + '/a/b', 'w').write('x')\n"
        "assert not os.path.exists(f)\n"
    )
    assert run_program(program).reason == "ok"


def test_a_huge_file_is_stopped():
    assert not run_program("open('big', 'w').write('x' * 10**8)").ok


def test_huge_output_is_discarded(capfd):
    assert run_program("print('x' * 10**7)").ok
    assert capfd.readouterr() == ("", "")


def test_standard_input_is_empty():
    assert run_program("input()").reason.startswith("EOFError")


def test_the_environment_is_empty(monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "x")
    program = "import os\nassert 'SECRET_OF_THE_PARENT' not in os.environ"
    assert run_program(program).ok


def test_the_standard_library_is_there_and_nothing_else():
    usual = "math, re, json, random, string, heapq, itertools, functools, collections, typing"
    assert run_program(f"import {usual}, datetime, decimal, statistics, dataclasses, bisect").ok
    assert run_program("import torch").reason.startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("def", "SyntaxError"),
        ("\0", "SyntaxError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ValueError('\\ud800')", "ValueError"),
        ("class E(Exception):\n  def __str__(self): raise E\nraise E", "E"),
    ],
)
def test_broken_programs_are_named(program, error):
    result = run_program(program)
    assert not result.ok
    assert result.reason.startswith(error)


def test_a_program_ends_even_if_its_parent_is_killed(tmp_path):
    note = tmp_path / "pid"
    program = (
        "import os, time, sys\nfrom dllm_sweep.evaluation import sandbox\n"
        "start = sandbox._start\n"
        "def started(*args):\n"
        "    child = start(*args)\n"
        f"    open({str(note)!r}, 'w').write(str(child.pid))\n"
        "    return child\n"
        "sandbox._start = started\n"
        "sandbox._finish = lambda child, order, seconds: (\n"
        "    child.stdin.write(order), child.stdin.close(), os.kill(os.getpid(), 9))\n"
        "sandbox.run_program('import time; time.sleep(60)', timeout_s=0.5)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=False)
    pid, limit = int(note.read_text()), time.monotonic() + 10
    while is_running(pid) and time.monotonic() < limit:
        select.select([], [], [], 0.05)
    assert not is_running(pid)


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_nothing_is_left_open():
    before = set(os.listdir("/dev/fd"))
    for program in (ADD, "def", "while True: pass"):
        run_program(program, timeout_s=0.3)
    assert set(os.listdir("/dev/fd")) == before
