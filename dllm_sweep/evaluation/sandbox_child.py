"""The child's side of the sandbox: a script run by `python -I -S`, never imported.

It limits itself, shuts what a test of a function never needs, runs the program and then its
tests, and reports on a pipe, with the token it was given, how that ended.

Two things shut it: the Linux kernel, where it can (seccomp for calls, Landlock for files), and an
audit hook of the interpreter, which also gives the program an exception that says what was refused.
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
_STARTING_MODULES = frozenset({"_posixsubprocess"})
"""They start processes behind the hook's back."""
_WRITING_MODULES = frozenset({"_dbm", "_gdbm", "_posixshmem", "_sqlite3"})
"""They write files behind the hook's back."""
_MOST_MADE = 200
"""Files opened for writing and folders made; the limit of a file's size holds for each."""
_INSIDE_ONLY = (
    "os.chdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.removexattr",
    "os.rename",
    "os.rmdir",
    "os.setxattr",
    "os.symlink",
    "os.truncate",
    "os.utime",
)
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
_REASON_CHARACTERS = 500

# What the filter refuses: new programs and processes (a thread is a clone with CLONE_THREAD),
# sockets, reaching into other processes, and ways around the filter. Numbers from Linux's unistd.h,
# in this order: socket, connect, execve, execveat, kill, ptrace, process_vm_readv,
# process_vm_writev, pidfd_open, pidfd_send_signal, unshare, setns, mount, io_uring_setup, mknodat,
# and on x86-64 fork, vfork and mknod.
_MACHINES = {
    "x86_64": (
        0xC000003E,
        56,
        (41, 42, 59, 322, 62, 101, 310, 311, 434, 424, 272, 308, 165, 425, 259, 57, 58, 133),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (198, 203, 221, 281, 129, 117, 270, 271, 434, 424, 97, 268, 40, 425, 33),
    ),
}
"""By machine: its number for audits, the call `clone`, and the calls that are refused."""
_CLONE3 = 435
_CLONE_THREAD = 0x10000
_OTHER_ABI = 0x40000000
_EPERM, _ENOSYS = 1, 38
_NO_NEW_PRIVILEGES = 38
"""The option of prctl without which neither filter nor rules may be set."""

# Landlock (Linux 5.13 and later), from linux/landlock.h; the calls' numbers are those of all
# machines. Rights: write to files; remove folders and files; make devices, folders, files, sockets,
# pipes and links; from version 2 on move between folders, from 3 on truncate.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION, _PATH_BENEATH = 1, 1
_CHANGES = (1 << 1) | sum(1 << bit for bit in range(4, 13))
_MOVES, _TRUNCATES = 1 << 13, 1 << 14


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
    held = ctypes.create_string_buffer(whole)
    set_filter, by_program = 22, 2
    return _prctl(_NO_NEW_PRIVILEGES, 1) and _prctl(set_filter, by_program, ctypes.addressof(held))


def keep_changes_inside(folder: str) -> bool:
    """Let the kernel refuse changes of files outside `folder` from now on; say whether it does."""
    if sys.platform != "linux":
        return False
    import ctypes

    call = ctypes.CDLL(None).syscall
    call.argtypes = [ctypes.c_long] * 5
    version = call(_CREATE_RULESET, 0, 0, _ASK_VERSION, 0)
    if version < 1:
        return False
    rights = _CHANGES | (_MOVES if version > 1 else 0) | (_TRUNCATES if version > 2 else 0)
    handled = ctypes.create_string_buffer(struct.pack("<Q", rights), 8)
    ruleset = call(_CREATE_RULESET, ctypes.addressof(handled), 8, 0, 0)
    inside = os.open(folder, os.O_RDONLY)
    allowed = ctypes.create_string_buffer(struct.pack("<Qi", rights, inside), 12)
    added = call(_ADD_RULE, ruleset, _PATH_BENEATH, ctypes.addressof(allowed), 0) == 0
    kept = added and _prctl(_NO_NEW_PRIVILEGES, 1) and call(_RESTRICT_SELF, ruleset, 0, 0, 0) == 0
    os.close(inside)
    os.close(ruleset)
    return kept


def _prctl(option: int, *values: int) -> bool:
    import ctypes

    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    return bool(prctl(option, *values, *[0] * (4 - len(values))) == 0)


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
        # What the kernel does not refuse, modules could do that the hook does not see.
        refused = _FORBIDDEN_MODULES
        refused |= frozenset() if keep_changes_inside(os.getcwd()) else _WRITING_MODULES
        refused |= frozenset() if filter_calls() else _STARTING_MODULES
        for name in [one for one in sys.modules if one.partition(".")[0] in _FORBIDDEN_MODULES]:
            del sys.modules[name]
        shut(os.getcwd(), refused)
        reason = run(program, tests)
    write(report_to, f"{token}\n{reason}".encode(errors="replace"))
    # Without waiting for threads or exit handlers of the program.
    leave(0)


if __name__ == "__main__":
    main()
