"""The child's side of the sandbox: a script run by `python -I -S`, never imported.

It limits itself, shuts what a test of a function never needs, runs the program and then its
tests, and reports on a pipe, with the token it was given, how that ended.
"""

import json
import os
import resource
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
_CHANGING = ("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir")
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
    real = os.path.realpath
    inside = real(folder) + os.sep

    def guard(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & _WRITE_FLAGS:
                return
            if not isinstance(path, str) or not real(path).startswith(inside):
                raise PermissionError("the sandbox writes in its own folder only")
        elif event.startswith(_CHANGING):
            if not all(real(os.fsdecode(one)).startswith(inside) for one in _paths(arguments)):
                raise PermissionError("the sandbox writes in its own folder only")
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


def _paths(arguments: tuple[object, ...]) -> list[str | bytes | os.PathLike[str]]:
    return [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]


if __name__ == "__main__":
    main()
