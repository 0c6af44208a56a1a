"""Signs of life: a thread beside the work tells the store that the worker is still at its trial,
hands over what was printed, and ends the process once somebody else owns the trial."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any

from dllm_sweep.db.interface import Store
from dllm_sweep.errors import Fenced, StoreError
from dllm_sweep.records import Claim

log = logging.getLogger(__name__)

FENCED_EXIT = 75
"""What a worker's process ends with when another owns its trial (EX_TEMPFAIL)."""
_LONGEST_BYTES = 2**16


class Beat:
    """Beats for one claim at a time, and for none between units.

    Args:
        store: Where to beat; a call that fails for now is simply made again a beat later.
        worker: Host and process id.
        interval_s: Seconds between two beats.
    """

    def __init__(self, store: Store, worker: str, interval_s: float) -> None:
        self._store, self._worker, self._interval_s = store, worker, interval_s
        self._claim: Claim | None = None
        self._outputs: dict[Path, _Output] = {}
        self._output = _Output(Path(os.devnull))
        # Held during a beat: a unit is not committed while one is in flight, since a beat that
        # arrives after a trial's last commit would be told that the trial is over.
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="beat", daemon=True).start()

    def start(self, claim: Claim, output: Path) -> None:
        """Beat for `claim` from now on, and hand over what is added to the file `output`."""
        with self._lock:
            self._claim = claim
            self._output = self._outputs.setdefault(output, _Output(output))

    def go_on(self, claim: Claim) -> None:
        """Beat for `claim` again, with the same file."""
        with self._lock:
            self._claim = claim

    def stop(self) -> None:
        """Beat no more; returns when no beat is in flight."""
        with self._lock:
            self._claim = None

    def piece(self) -> dict[str, Any]:
        """Beat no more; what was printed and not handed over yet, for the commit to take along."""
        _flush()
        with self._lock:
            self._claim = None
            number, text = self._output.piece()
        return {"worker": self._worker, "log": text, "number": number}

    def arrived(self) -> None:
        """Note that the piece is in the store."""
        self._output.arrived()

    def last(self, claim: Claim) -> None:
        """Beat once more for a claim, to hand over what was printed, and then no more.

        Raises:
            Fenced: If somebody else owns the trial now.
        """
        _flush()
        with self._lock:
            self._claim = None
            self._beat(claim)

    def _run(self) -> None:
        # An event that is never set serves as a clock that ends with the process.
        never = threading.Event()
        while not never.wait(self._interval_s):
            with self._lock:
                if self._claim is not None:
                    self._beat_or_leave(self._claim)

    def _beat_or_leave(self, claim: Claim) -> None:
        try:
            self._beat(claim)
        except Fenced as error:
            log.warning("somebody else owns this trial now; this process ends: %s", error)
            _flush()
            os._exit(FENCED_EXIT)
        except Exception:
            log.exception("no sign of life reached the store; trying again")

    def _beat(self, claim: Claim) -> None:
        number, text = self._output.piece()
        try:
            self._store.beat(claim, self._worker, text, number=number)
        except Fenced:
            raise
        except StoreError as error:
            log.warning("no sign of life reached the store; trying again: %s", error)
            return
        self._output.arrived()


class _Output:
    """What is added to a file, as numbered pieces; of a very long one, beginning and end.

    A piece stays the same until it has arrived: the store keeps one copy of each number.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number, self._piece = 1, ""
        self._at = path.stat().st_size if path.is_file() else 0

    def piece(self) -> tuple[int, str]:
        """The number and the text of what is to be sent next."""
        if not self._piece:
            self._piece = self._read()
        return self._number, self._piece

    def arrived(self) -> None:
        """Go on to the next piece."""
        self._number += bool(self._piece)
        self._piece = ""

    def _read(self) -> str:
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                added = file.read()
        except OSError:
            return ""
        self._at += len(added)
        if len(added) <= _LONGEST_BYTES:
            return added.decode(errors="replace")
        half = _LONGEST_BYTES // 2
        left_out = len(added) - 2 * half
        note = f"\n[{left_out} bytes are left out here; the whole log is {self._path}]\n"
        return added[:half].decode(errors="replace") + note + added[-half:].decode(errors="replace")


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
