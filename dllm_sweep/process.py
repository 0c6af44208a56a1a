"""Who this process is, told so that another process can see whether it still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from dllm_sweep.records import Holder


def this_process() -> Holder:
    """This process as the holder of a lease."""
    pid = os.getpid()
    return Holder(host=socket.gethostname(), pid=pid, process_started_s=_started_s(pid) or 0.0)


def is_gone(holder: Holder) -> bool:
    """Whether `holder` is known to have ended; False if it runs on another host.

    A process id alone does not tell: ids are used again, so the start time must match, too.
    """
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started_s = _started_s(holder.pid)
    return started_s is not None and started_s != holder.process_started_s


def _started_s(pid: int) -> float | None:
    """Seconds from the host's boot to the start of a process; None where /proc is missing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in parentheses and may hold spaces; field 22 is the start.
    ticks = int(stat.rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")
