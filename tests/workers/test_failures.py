import gc
import weakref

import pytest
import torch

from dllm_sweep.errors import CheckpointError, StoreError
from dllm_sweep.records import EndReason
from dllm_sweep.spec import Unit
from dllm_sweep.workers import failures

UNIT = Unit(kind="quantize")


def described(error, log=None):
    try:
        raise error
    except BaseException as caught:
        return failures.describe(caught, UNIT, log)


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (ValueError("bad shape"), EndReason.ERROR, False),
        (SystemExit(3), EndReason.ERROR, False),
        (KeyboardInterrupt(), EndReason.ERROR, False),
        (CheckpointError("no such tensor"), EndReason.ERROR, False),
        (ConnectionError("reset"), EndReason.ERROR, True),
        (StoreError("locked"), EndReason.ERROR, True),
        (torch.OutOfMemoryError("CUDA"), EndReason.GPU_OOM, True),
        (MemoryError(), EndReason.HOST_OOM, True),
    ],
)
def test_each_error_has_its_reason_and_may_or_may_not_pass(error, reason, retryable):
    failure = described(error)
    assert (failure.reason, failure.retryable) == (reason, retryable)
    assert failure.error_type == type(error).__name__
    assert failure.message


def test_a_described_error_keeps_no_tensors_alive():
    class Big:
        pass

    def fail():
        big = Big()
        kept.append(weakref.ref(big))
        raise ValueError("full")

    kept = []
    try:
        fail()
    except ValueError as error:
        failure = failures.describe(error, UNIT, None)
    gc.collect()
    assert kept[0]() is None
    assert "in fail" in failure.traceback


def test_the_end_of_the_log_is_kept(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10_000 + b"\xff the last words")
    assert described(ValueError("bad"), log).log_tail.endswith("the last words")
    assert len(described(ValueError("bad"), log).log_tail) <= 4096


def test_the_same_fault_has_the_same_fingerprint_whatever_its_words():
    assert described(ValueError("a")).fingerprint == described(ValueError("b")).fingerprint
    assert described(ValueError("a")).fingerprint != described(TypeError("a")).fingerprint


def test_only_an_end_by_the_trials_own_code_is_final():
    assert failures.lost(EndReason.LOST, "killed", UNIT, None).retryable
    assert not failures.lost(EndReason.ERROR, "exit", UNIT, None).retryable
