"""What to do about a failure: rules as data, the first one that fits is the hint."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dllm_sweep.records import EndReason


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One kind of failure.

    Attributes:
        kind: Its name.
        advice: What to do, one line.
        reasons: Ends of attempts that it covers whatever the message says.
        pattern: Else what the error's class or message contains, as a regular expression.
    """

    kind: str
    advice: str
    reasons: tuple[EndReason, ...] = ()
    pattern: str = ""

    def fits(self, reason: str, error: str) -> bool:
        """Whether a failure with this end and this text (class and message) is of this kind."""
        if reason in self.reasons:
            return True
        return bool(self.pattern) and re.search(self.pattern, error, re.IGNORECASE) is not None


RULES = (
    Rule(
        kind="GPU memory",
        advice="the batch was halved until it could not be smaller: ask for a larger GPU or more"
        " GPUs per trial (`resources`), or a smaller batch_size; then `retry --class GPU_OOM`",
        reasons=(EndReason.GPU_OOM,),
        pattern=r"CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED",
    ),
    Rule(
        kind="host memory",
        advice="set `resources: memory` so that fewer workers share a machine, or use machines with"
        " more memory; then `retry --class HOST_OOM`",
        reasons=(EndReason.HOST_OOM,),
        pattern=r"Cannot allocate memory|DefaultCPUAllocator",
    ),
    Rule(
        kind="disk full",
        advice="free space (`dllm-sweep gc --dry-run` says what can go), then `resume`",
        pattern=r"No space left|disk (is )?full|ENOSPC|quota exceeded|DiskFull",
    ),
    Rule(
        kind="time limit",
        advice="the unit ran far longer than its estimate: look at `logs TRIAL` for where it hangs;"
        " `retry --class TIMEOUT` tries again",
        reasons=(EndReason.TIMEOUT,),
    ),
    Rule(
        kind="lost machines",
        advice="machines vanished (spot, network, power): nothing is wrong with the trial; look at"
        " the cluster, then `retry --class LOST`",
        reasons=(EndReason.LOST, EndReason.PREEMPTED),
    ),
    Rule(
        kind="weights",
        advice="quantization gave NaN or infinite weights: that is the method's own failure at"
        " these bits; try other parameters (damping, group size) or leave the point out",
        pattern=r"NaN|not finite|infinite|Inf\b|not positive.definite|singular",
    ),
    Rule(
        kind="not downloaded",
        advice="a model, data set or file is not on the machine that ran it: download it there"
        " before (workers are offline), or name a local folder; then `retry --failed`",
        pattern=r"FileNotFoundError|No such file|OfflineMode|LocalEntryNotFound|HF_HUB_OFFLINE"
        r"|outgoing traffic has been disabled|Couldn't (find|reach)|RepositoryNotFound"
        r"|CheckpointError|CalibrationError",
    ),
    Rule(
        kind="CUDA error",
        advice="the GPU or its driver failed, not the trial, if others pass on that machine: look"
        " at `nvidia-smi` and the system log there, then `retry --failed`",
        pattern=r"CUDA|cuBLAS|cuDNN|NCCL|\bXid\b|device-side assert",
    ),
    Rule(
        kind="store",
        advice="the store did not answer in time: look at the database server and the network, then"
        " `retry --failed`",
        pattern=r"StoreError|StoreUnavailable|OperationalError|ConnectionError|Connection refused",
    ),
    Rule(
        kind="stopped",
        advice="stopped from outside: `resume` goes on",
        reasons=(EndReason.ABORTED, EndReason.FENCED),
    ),
)
"""Kinds of failures, most telling first."""

UNKNOWN = Rule(
    kind="unknown",
    advice="read the traceback (`dllm-sweep failures --traceback`, `logs TRIAL`); after a fix,"
    " `retry --failed`",
)


def rule_for(reason: str, error_type: str, message: str) -> Rule:
    """The rule for a failure, by the end of its attempt, the error's class and its message."""
    error = f"{error_type}: {message}"
    return next((rule for rule in RULES if rule.fits(reason, error)), UNKNOWN)
