"""The child's side of the sandbox: a script run by `python -I -S`, never imported.

It limits itself, shuts what a test of a function never needs, runs the program and then its
tests, and reports on a pipe, with the token it was given, how that ended.
"""

import json
import os
import resource
import signal
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


def shut(folder: str) -> None:
    """Refuse processes, sockets and changes of files outside `folder` from now on."""
    real, is_folder = os.path.realpath, os.path.isdir
    inside = real(folder) + os.sep

    def is_inside(path: str | bytes | os.PathLike[str]) -> bool:
        return (real(os.fsdecode(path)) + os.sep).startswith(inside)

    def guard(event: str, arguments: tuple[object, ...]) -> None:
        paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and bool(flags & _WRITE_FLAGS)
            # A folder's descriptor lets paths start there, past the checks below.
            if not writes and not (isinstance(path, str | bytes) and is_folder(path)):
                return
            if isinstance(path, int) or not all(map(is_inside, paths[:1])):
                raise PermissionError("the sandbox writes in its own folder only")
        elif event.startswith(_INSIDE_ONLY) and not all(map(is_inside, paths)):
            raise PermissionError("the sandbox changes files in its own folder only")
        elif event.startswith(_FORBIDDEN):
            raise PermissionError(f"the sandbox refuses {event}")

    sys.addaudithook(guard)


def run(program: CodeType, tests: CodeType) -> str:
    """Run both in one namespace; say `ok` or what stopped them."""
    names: dict[str, object] = {"__name__": "__main__", "__builtins__": __builtins__}
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
        shut(os.getcwd())
        reason = run(program, tests)
    write(report_to, f"{token}\n{reason}".encode(errors="replace"))
    # Without waiting for threads or exit handlers of the program.
    leave(0)


if __name__ == "__main__":
    main()
