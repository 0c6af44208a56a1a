import pytest

from dllm_sweep.errors import DeviceBusy
from dllm_sweep.workers import devices

GIB = 2**30


def test_a_model_that_does_not_fit_into_the_free_memory_waits():
    with pytest.raises(DeviceBusy, match=r"cuda:0 has 10\.0 GiB free and the model needs 17\.6"):
        devices.check_room({"cuda:0": 10 * GIB}, 16 * GIB)


def test_several_gpus_share_what_a_model_needs():
    devices.check_room({"cuda:0": 10 * GIB, "cuda:1": 9 * GIB}, 16 * GIB)
    with pytest.raises(DeviceBusy, match="cuda:1"):
        devices.check_room({"cuda:0": 10 * GIB, "cuda:1": 8 * GIB}, 16 * GIB)


def test_a_worker_without_a_gpu_uses_the_cpu(options):
    assert devices.prepare(options) == ("cpu",)
    assert devices.describe(("cpu",)) == "cpu"
    assert devices.give_back(("cpu",)) is False
    assert devices.peak_bytes(("cpu",)) is None
