"""Turning an exception of a trial into the text and the class that the store keeps."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path

from dllm_sweep.errors import DeviceBusy, DiskFull, InputError, StoreError
from dllm_sweep.records import EndReason, Failure
from dllm_sweep.spec import Unit

_CODE = Path(__file__).resolve().parents[1]
_LOG_TAIL_BYTES = 4096

_TRANSIENT = (ConnectionError, TimeoutError, StoreError, DeviceBusy)
"""Errors of the surroundings that may be gone a minute later; all others are the trial's own."""


_KINDS = {EndReason.TIMEOUT: "UnitTimeout", EndReason.HOST_OOM: "OutOfMemory"}
"""Kinds of ends that no exception names; all others are deaths of the process."""


class WeightsLost(Exception):
    """The quantized weights that a claim's finished units were measured on are not there."""


def describe(error: BaseException, unit: Unit, log: Path | None) -> Failure:
    """Describe why a unit failed.

    Everything becomes text here: a kept traceback would keep the failed trial's tensors, and
    with them the GPU's memory, alive.

    Args:
        error: What the unit raised.
        unit: The unit.
        log: The attempt's log, whose end is kept with the failure.
    """
    text = "".join(traceback.format_exception(error))
    reason, retryable = _classify(error)
    failure = Failure(
        reason=reason,
        error_type=type(error).__name__,
        message=str(error).strip() or type(error).__name__,
        traceback=text,
        fingerprint=_fingerprint(error),
        unit=unit.key,
        retryable=retryable,
        log_tail=_tail(log),
    )
    traceback.clear_frames(error.__traceback__)
    return failure


def lost(reason: EndReason, message: str, unit: Unit, log: Path | None) -> Failure:
    """Describe an attempt that ended without telling why: its process is gone."""
    return Failure(
        reason=reason,
        error_type=_KINDS.get(reason, "ProcessDied"),
        message=message,
        traceback="",
        fingerprint=reason.value,
        unit=unit.key,
        # A process that the trial's own code has ended would end in the same way again.
        retryable=reason is not EndReason.ERROR,
        log_tail=_tail(log),
    )


def needs_a_fresh_process(failure: Failure) -> bool:
    """Whether the process may be harmed: out of memory, or a CUDA error, which stays."""
    harmed = failure.reason in {EndReason.GPU_OOM, EndReason.HOST_OOM}
    leaves = failure.error_type in {"SystemExit", "DeviceBusy"}
    return harmed or leaves or "CUDA" in failure.message


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written, wherever it was: no trial is to blame for that."""
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return no_space or isinstance(error, DiskFull)


def _classify(error: BaseException) -> tuple[EndReason, bool]:
    # A process that has not imported torch cannot have met an error of its.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return EndReason.GPU_OOM, True
    if is_disk_full(error):
        return EndReason.ABORTED, True
    if isinstance(error, MemoryError):
        return EndReason.HOST_OOM, True
    transient = isinstance(error, _TRANSIENT) and not isinstance(error, InputError)
    return EndReason.ERROR, transient


def _fingerprint(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(_CODE)]
    last = (own or frames)[-1:]
    place = "".join(f"@{Path(frame.filename).name}:{frame.name}" for frame in last)
    return f"{type(error).__name__}{place}"


def _tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
