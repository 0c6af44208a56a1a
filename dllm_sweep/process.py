"""Who this process is, told so that another one can see whether it lives; taking over the dead."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dllm_sweep.errors import LeaseHeld
from dllm_sweep.records import Holder, Lease

if TYPE_CHECKING:
    from dllm_sweep.db.interface import Store

_LOOK_S = 1.0


def this_process() -> Holder:
    """This process as the holder of a lease."""
    pid = os.getpid()
    return Holder(host=socket.gethostname(), pid=pid, process_started_s=_started_s(pid) or 0.0)


def is_alive(holder: Holder) -> bool | None:
    """Whether `holder` still runs; None if it cannot be told, since it runs on another host.

    A process id alone does not tell: ids are used again, so the start time must match, too.
    """
    if holder.host != socket.gethostname():
        return None
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    started_s = _started_s(holder.pid)
    return started_s is None or started_s == holder.process_started_s


def take_lease(
    store: Store,
    sweep: str,
    holder: Holder,
    *,
    seconds: float,
    takeover: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Lease:
    """Become a sweep's controller, at once or after one that is dead.

    A dead controller on this host is told by its process. One on another host is watched: if it
    renews its lease it lives; if it does not for the whole length of a lease, as this process's
    own clock runs, it is dead, also if the database's clock was set back and its lease would
    not run out for hours.

    Args:
        store: Where the lease is.
        sweep: The sweep's name.
        holder: This process.
        seconds: Length of every controller's lease.
        takeover: Take it at once, whoever holds it.
        tell: Told when the other controller must be watched.
        clock: Seconds that never run backwards.
        sleep: Waits for some seconds.

    Raises:
        LeaseHeld: If another controller runs the sweep.
        UnknownName: If there is no such sweep.
    """
    first: LeaseHeld | None = None
    dead: Holder | None = None
    since_s = clock()
    while True:
        try:
            return store.take_lease(sweep, holder, seconds=seconds, takeover=takeover, dead=dead)
        except LeaseHeld as held:
            alive = is_alive(_holder_of(held))
            if alive or (first is not None and held.until_s != first.until_s):
                raise
            if first is None and alive is None:
                tell(f"process {held.pid} on {held.host} has {sweep!r}: seeing if it still lives")
            first = first or held
        if alive is False or clock() - since_s > seconds:
            dead = _holder_of(first)
        else:
            sleep(_LOOK_S)


def _holder_of(held: LeaseHeld) -> Holder:
    return Holder(host=held.host, pid=held.pid, process_started_s=held.process_started_s)


def _started_s(pid: int) -> float | None:
    """Seconds from the host's boot to the start of a process; None where /proc is missing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in parentheses and may hold spaces; field 22 is the start.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
