"""What Ctrl-C and SIGTERM do to a run: the first asks it to finish, the second to stop at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from dllm_sweep.controller import Stop
from dllm_sweep.progress import Display

INTERRUPTED = 130
"""What a run ends with that was stopped by a signal."""
_HEEDED = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns signals into wishes of the user.

    Args:
        stop: Told what the user wants.
        shown: Tells the user what happens next.
    """

    def __init__(self, stop: Stop, shown: Display) -> None:
        self._stop, self._shown = stop, shown
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    @property
    def any(self) -> bool:
        """Whether a signal has come, also if the main thread had no time for it yet."""
        with contextlib.suppress(BlockingIOError):
            return self._stop.drain or bool(os.read(self._read, 1))
        return self._stop.drain

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed signals inside, and leave things as they were."""
        kept = {number: signal.signal(number, self._handle) for number in _HEEDED}
        wakes = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakes)
            for number, old in kept.items():
                signal.signal(number, old)

    def _handle(self, _signal: int, _frame: object) -> None:
        if self._stop.drain:
            self._stop.now = True
            self._shown.note("stopping now; unfinished units run again with `dllm-sweep resume`")
            return
        self._stop.drain = True
        self._shown.note("finishing the units in flight; press Ctrl-C again to stop at once")
