"""The events of a small sweep, as a controller tells them."""

import pytest

from dllm_sweep.progress import Subject
from dllm_sweep.records import EndReason, Failure, HostInfo, TrialState
from dllm_sweep.spec import Unit

TRIAL = Subject("ab" * 32, 'toy gptq "w4"', 2)


@pytest.fixture
def tell():
    return _tell


def _tell(shown):
    """Tell a display of two workers, of which one goes, a unit done and one that failed."""
    failure = Failure(
        reason=EndReason.GPU_OOM,
        error_type="OutOfMemoryError",
        message="CUDA out of memory\nmore",
        traceback="",
        fingerprint="OutOfMemoryError@gptq.py:solve",
        unit="evaluate:math:1/2",
        retryable=True,
    )
    shown.start(units=9, done=4, workers=2)
    for worker in (7, 12):
        shown.worker_joined(worker, HostInfo(host=f"node-{worker}", pid=worker, device="H100"))
    shown.unit_started(7, TRIAL, Unit(kind="quantize"))
    shown.unit_done(7, TRIAL, Unit(kind="quantize"), 12.5)
    shown.unit_started(12, TRIAL, Unit(kind="evaluate", task="math", shards=2))
    shown.unit_failed(12, TRIAL, Unit(kind="evaluate", task="math", shards=2), failure)
    shown.trial_ended(TRIAL, TrialState.PENDING, failure)
    shown.worker_left(12, "its GPU was out of memory")
    shown.standing({TrialState.PENDING: 1, TrialState.SUCCEEDED: 3}, 90.0)
    shown.lease_renewed()
    shown.store_waited(2.5, "the server does not answer")
    shown.note("a note")
