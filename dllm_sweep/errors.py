"""Every error that a user can meet, each with the exit code the command line returns for it.

    SweepError                      1
    ├── InputError                  2   something the user wrote or named
    │   ├── UnknownName             2   a name that does not exist, with the nearest one that does
    │   ├── SweepFileError          2   all problems of one sweep file at once
    │   ├── CheckpointError         2   a model folder that cannot be loaded
    │   └── CalibrationError        2   a calibration set that cannot be read or is too small
    ├── QuantizationError           1   a method that cannot do what the trial asks of it
    ├── StoreError                  3   the result store cannot be opened, read or written
    │   ├── StoreUnavailable        3   it does not answer now, but may do so soon
    │   ├── SchemaOutOfDate         3   the store needs a migration
    │   ├── LeaseHeld               3   another controller runs this sweep
    │   └── Fenced                  3   somebody else owns this trial now: drop the work
    ├── DiskFull                    3   a file beside the store cannot be written
    └── ClusterError                4   Ray cannot be reached or cannot ever place a trial
        └── DeviceBusy              4   somebody else holds the GPU's memory

A message names what was wrong, where, and what to do. It is one line: the command line prints
it as it is, without a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SweepError(Exception):
    """The root of all errors raised on purpose."""

    exit_code = 1


class InputError(SweepError):
    """Something the user wrote or named cannot be used."""

    exit_code = 2


class UnknownName(InputError):
    """A name that does not exist.

    Args:
        kind: What was named, as a person would say it ("method", "task").
        name: The name as written.
        choices: All names of that kind that exist.
        others: What else may be named, in words.
    """

    def __init__(self, kind: str, name: str, choices: Iterable[str], others: str = "") -> None:
        self.kind, self.name, self.choices = kind, name, tuple(sorted(choices))
        self.others = others
        more = f"; {others} can be named, too" if others else ""
        super().__init__(f"unknown {kind} {name!r}{suggestion(name, self.choices)}{more}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Errors cross process borders: pickle rebuilds them from their arguments."""
        return type(self), (self.kind, self.name, self.choices, self.others)


class SweepFileError(InputError):
    """A sweep file with one or more problems, all of them reported together.

    Args:
        path: The file.
        problems: One line each: where in the file, what is wrong, what to write instead.
    """

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path, self.problems = path, tuple(problems)
        super().__init__("\n".join(f"{path}: {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Errors cross process borders: pickle rebuilds them from their arguments."""
        return type(self), (self.path, self.problems)


class CheckpointError(InputError):
    """A model folder that cannot be loaded."""


class CalibrationError(InputError):
    """A calibration set that cannot be read, or holds too little text."""


class QuantizationError(SweepError):
    """A method that cannot do what the trial asks of it."""


class StoreError(SweepError):
    """The result store cannot be opened, read or written."""

    exit_code = 3


class StoreUnavailable(StoreError):
    """The store does not answer now, but may do so soon: nothing was written, ask again."""


class StoreEmpty(StoreError):
    """There is a database, and no store in it yet."""


class SchemaOutOfDate(StoreError):
    """The store's tables are of another version than this program's."""


class LeaseHeld(StoreError):
    """Another controller runs this sweep.

    Args:
        sweep: The sweep's name.
        host: Host name of the holder.
        pid: Process id of the holder on that host.
        process_started_s: Start time of that process in seconds since its host booted; it tells
            a living holder from another process that got the same id.
        expires_in_s: Seconds until the lease runs out unless it is renewed.
        until_s: When it runs out by the database's clock: changes with every renewal.
    """

    def __init__(
        self,
        sweep: str,
        host: str,
        pid: int,
        process_started_s: float,
        expires_in_s: float,
        until_s: float = 0.0,
    ) -> None:
        self.sweep, self.host, self.pid = sweep, host, pid
        self.process_started_s, self.expires_in_s = process_started_s, expires_in_s
        self.until_s = until_s
        super().__init__(
            f"sweep {sweep!r} is being run by process {pid} on {host}"
            f" (its lease runs out in {max(expires_in_s, 0):.0f} s);"
            " stop it there, or take over with --takeover"
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Errors cross process borders: pickle rebuilds them from their arguments."""
        return type(self), (
            self.sweep,
            self.host,
            self.pid,
            self.process_started_s,
            self.expires_in_s,
            self.until_s,
        )


class Fenced(StoreError):
    """Somebody else owns this trial now: drop the work and stop, quietly."""


class ClusterError(SweepError):
    """Ray cannot be reached, or can never place what a trial asks for."""

    exit_code = 4


class DiskFull(SweepError):
    """A file cannot be written: no space, a quota, a read-only folder. Nothing is lost by it; all
    workers of that machine will meet it, so the run stops claiming."""

    exit_code = 3


class DeviceBusy(ClusterError):
    """The GPU's memory is taken by somebody else: the trial may run later, or on another one."""


def suggestion(name: str, choices: Sequence[str]) -> str:
    """Say which valid name is nearest to `name`, and which exist, as the tail of a message."""
    listed = ", ".join(choices) or "none"
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f": did you mean {near[0]!r}? (there are: {listed})"
    return f" (there are: {listed})"
