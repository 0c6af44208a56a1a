"""What Ray's many words on a dead worker mean."""

from __future__ import annotations

from typing import Any

import ray

from dllm_sweep.records import EndReason
from dllm_sweep.workers.messages import Death, Outcome

_LONGEST = 500


def result(ref: Any) -> Outcome | Death:
    """How a unit ended, given the finished reference of its call."""
    try:
        ended: Outcome | Death = ray.get(ref)
    except ray.exceptions.RayError as error:
        return death(error)
    return ended


def death(error: ray.exceptions.RayError) -> Death:
    """What became of a worker, given the error that its call ended with."""
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        text = "the machine ran out of memory, and Ray ended the worker"
        return Death(reason=EndReason.HOST_OOM, message=text)
    if isinstance(error, ray.exceptions.RayActorError):
        return _dead_actor(error, str(error))
    if isinstance(error, ray.exceptions.RayTaskError):
        text = f"the worker could not tell how the unit ended: {one_line(error.cause)}"
        return Death(reason=EndReason.LOST, message=text)
    return Death(reason=EndReason.LOST, message=one_line(error), machine_lost=True)


def _dead_actor(error: ray.exceptions.RayActorError, text: str) -> Death:
    if error.preempted:
        text = "the worker's machine was taken away"
        return Death(reason=EndReason.PREEMPTED, message=text, machine_lost=True)
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        # A process that dies alone is noticed at once; this is a machine that does not answer.
        text = "the worker's machine does not answer any more"
        return Death(reason=EndReason.LOST, message=text, machine_lost=True)
    if "node" in text and ("node has died" in text or "node was terminated" in text):
        message = "the worker's machine is gone"
        return Death(reason=EndReason.LOST, message=message, machine_lost=True)
    # A process that ended by itself was ended by the code it ran: that will happen again.
    if "exit_actor" in text or "INTENDED_USER_EXIT" in text:
        message = "the trial's code ended the worker's process"
        return Death(reason=EndReason.ERROR, message=message)
    message = (
        "the worker's process died: killed from outside, as when memory runs out, or by a crash"
        " of native code"
    )
    return Death(reason=EndReason.LOST, message=message)


def why_not_started(error: BaseException) -> str:
    """The last line of what a worker's start ended with: the one that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1][:_LONGEST]


def one_line(error: BaseException) -> str:
    """An error's type and the beginning of its text."""
    text = " ".join(str(error).split())[:_LONGEST]
    return f"{type(error).__name__}: {text}"
