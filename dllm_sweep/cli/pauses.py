"""Watching something: Ctrl-C takes effect between two looks, never in the middle of one."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def heeding_ctrl_c() -> Iterator[Callable[[float], None]]:
    """Give a way to wait for some seconds; the first Ctrl-C raises KeyboardInterrupt from there.

    A query that is interrupted would print what its driver thinks of that; only a second Ctrl-C,
    where a query hangs, does it all the same.
    """
    asked = pausing = False

    def handle(_signal: int, _frame: object) -> None:
        nonlocal asked
        before, asked = asked, True
        if pausing or before:
            raise KeyboardInterrupt

    def pause(seconds: float) -> None:
        nonlocal pausing
        pausing = True
        try:
            if asked:
                raise KeyboardInterrupt
            time.sleep(seconds)
        finally:
            pausing = False

    usual = signal.signal(signal.SIGINT, handle)
    try:
        yield pause
    finally:
        signal.signal(signal.SIGINT, usual)
