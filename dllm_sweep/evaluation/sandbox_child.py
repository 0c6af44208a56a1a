"""The child's side of the sandbox: a script run by `python -I -S`, never imported.

It limits itself, shuts what a test of a function never needs, runs the program and then its
tests, and reports on a pipe, with the token it was given, how that ended.

Two things shut it: a filter of system calls in the Linux kernel, where there is one, and an audit
hook of the interpreter, which also gives the program an exception that says what was refused.
"""

import json
import os
import platform
import resource
import signal
import struct
import sys
from types import CodeType

_FORBIDDEN = (
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.kill",
    "os.posix_spawn",
    "os.putenv",
    "os.spawn",
    "os.system",
    "pty.",
    "resource.setrlimit",
    "signal.pthread_kill",
    "socket.",
    "subprocess.",
)
_FORBIDDEN_MODULES = frozenset({"ctypes", "_ctypes"})
"""They change memory behind the interpreter's back."""
_MOST_MADE = 200
"""Files opened for writing and folders made; the limit of a file's size holds for each."""
_INSIDE_ONLY = (
    "os.chdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_REASON_CHARACTERS = 500

# What the filter refuses: new programs and processes (a thread is a clone with CLONE_THREAD),
# sockets, reaching into other processes, and ways around the filter. Numbers from Linux's unistd.h,
# in this order: socket, connect, execve, execveat, kill, ptrace, process_vm_readv,
# process_vm_writev, pidfd_open, pidfd_send_signal, unshare, setns, mount, io_uring_setup, and on
# x86-64 fork and vfork.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        56,
        (41, 42, 59, 322, 62, 101, 310, 311, 434, 424, 272, 308, 165, 425, 57, 58),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (198, 203, 221, 281, 129, 117, 270, 271, 434, 424, 97, 268, 40, 425),
    ),
}
"""By machine: its number for audits, the call `clone`, and the calls that are refused."""
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_OTHER_ABI = 0x40000000
_EPERM, _ENOSYS = 1, 38


def limit(limits: dict[str, int]) -> None:
    """Lower the process's limits; a limit that this system does not have is passed over."""
    for name, value in limits.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        try:
            _, hard = resource.getrlimit(kind)
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            continue


def filter_calls() -> bool:
    """Let the kernel refuse processes and sockets from now on; say whether it does.

    A classic BPF program over `struct seccomp_data`: number of the call at 0, machine at 4, the
    first argument's lower half at 16.
    """
    known = _MACHINES.get(platform.machine())
    if known is None or sys.platform != "linux":
        return False
    program = b"".join(struct.pack("<HBBI", *step) for step in _steps(*known))
    import ctypes

    code = ctypes.create_string_buffer(program)
    whole = struct.pack("<HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    held = ctypes.create_string_buffer(whole)
    set_no_new_privileges, set_filter, by_program = 38, 22, 2
    if prctl(set_no_new_privileges, 1, 0, 0, 0):
        return False
    return bool(prctl(set_filter, by_program, ctypes.addressof(held), 0, 0) == 0)


def _steps(machine: int, clone: int, refused: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Instructions (operation, jump if true, jump if false, operand) of the filter."""
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x00050000 | _EPERM, 0x00050000 | _ENOSYS
    calls = [(equal, 0, 1, number) for number in refused]
    return [
        (load, 0, 0, 4),
        (equal, 1, 0, machine),
        (give, 0, 0, refuse),
        (load, 0, 0, 0),
        (at_least, 0, 1, _OTHER_ABI),
        (give, 0, 0, refuse),
        *(step for call in calls for step in (call, (give, 0, 0, refuse))),
        # Without clone3 the C library starts threads by clone, whose flags can be looked at.
        (equal, 0, 1, _CLONE3),
        (give, 0, 0, unknown),
        (equal, 1, 0, clone),
        (give, 0, 0, allow),
        (load, 0, 0, 16),
        (any_bit, 0, 1, _CLONE_THREAD),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
    ]


def shut(folder: str, modules: frozenset[str]) -> None:
    """Refuse processes, sockets, `modules` and changes of files outside `folder` from now on."""
    real, is_folder = os.path.realpath, os.path.isdir
    inside = real(folder) + os.sep
    made = 0

    def is_inside(path: str | bytes | os.PathLike[str]) -> bool:
        return (real(os.fsdecode(path)) + os.sep).startswith(inside)

    def count() -> None:
        nonlocal made
        made += 1
        if made > _MOST_MADE:
            raise PermissionError(f"the sandbox makes no more than {_MOST_MADE} files and folders")

    def guard(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import" and arguments[0] in modules:
            raise ImportError(f"the sandbox has no module {arguments[0]}")
        paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
            # A folder's descriptor lets paths start there, past the checks below.
            if not writes and not (isinstance(path, str | bytes) and is_folder(path)):
                return
            if isinstance(path, int) or not all(map(is_inside, paths[:1])):
                raise PermissionError("the sandbox writes in its own folder only")
            count()
        elif event.startswith(_INSIDE_ONLY) and not all(map(is_inside, paths)):
            raise PermissionError("the sandbox changes files in its own folder only")
        elif event in ("os.mkdir", "os.symlink", "os.link"):
            count()
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"the sandbox refuses {event}")

    sys.addaudithook(guard)


def run(program: CodeType, tests: CodeType) -> str:
    """Run both in one namespace; say `ok` or what stopped them."""
    # As in HumanEval's and MBPP's own runners, the program is not `__main__`.
    names: dict[str, object] = {"__builtins__": __builtins__}
    try:
        exec(program, names)
        exec(tests, names)
    except BaseException as error:
        return describe(error)
    return "ok"


def describe(error: BaseException) -> str:
    """Name an exception and its text, on one line."""
    try:
        text = " ".join(str(error).split())
    except BaseException:
        text = ""
    return f"{type(error).__name__}: {text}"[:_REASON_CHARACTERS]


def main() -> None:
    """Read the order from standard input, do it, report."""
    report_to, leave, write = int(sys.argv[1]), os._exit, os.write
    order = json.load(sys.stdin)
    token = order["token"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limit(order["limits"])
    # If the parent is killed, nobody else ends a program that sleeps.
    signal.alarm(order["alarm_s"])
    try:
        program = compile(order["program"], "<program>", "exec")
        tests = compile(order["tests"], "<tests>", "exec")
    except BaseException as error:
        reason = describe(error)
    else:
        del order
        filtered = filter_calls()
        for name in [one for one in sys.modules if one.partition(".")[0] in _FORBIDDEN_MODULES]:
            del sys.modules[name]
        # Without a filter, the module that starts processes behind the hook's back must go.
        shut(os.getcwd(), _FORBIDDEN_MODULES | (set() if filtered else {"_posixsubprocess"}))
        reason = run(program, tests)
    write(report_to, f"{token}\n{reason}".encode(errors="replace"))
    # Without waiting for threads or exit handlers of the program.
    leave(0)


if __name__ == "__main__":
    main()
