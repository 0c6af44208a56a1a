"""The GPUs of a worker: which they are, whether they have room, and giving memory back."""

from __future__ import annotations

import gc

import torch

from dllm_sweep.errors import DeviceBusy
from dllm_sweep.workers.messages import WorkerOptions

LEAST_LEFT = 0.01
"""Share of a GPU that may stay allocated between two models; more than that is a leak."""
ROOM_FOR_WORK = 1.1
"""Memory that a model needs, beside its weights' bytes: activations of small batches."""
_GIB = 2**30


def prepare(options: WorkerOptions) -> tuple[str, ...]:
    """Set this process up for its devices, and name them.

    Returns:
        `cpu`, or every GPU that this process may use: Ray shows it those alone.
    """
    torch.set_num_threads(options.threads)
    if options.device != "cuda":
        return (options.device,)
    if 0 < options.gpus < 1:
        # Workers on one GPU see all of its memory: each keeps to its share.
        torch.cuda.set_per_process_memory_fraction(options.gpus)
    count = torch.cuda.device_count() if options.gpus > 1 else 1
    return tuple(f"cuda:{number}" for number in range(count))


def describe(devices: tuple[str, ...]) -> str:
    """`cpu`, or the GPU's name, with the number of them if there are several."""
    if devices[0] == "cpu":
        return "cpu"
    name: str = torch.cuda.get_device_name(devices[0])
    return name if len(devices) == 1 else f"{len(devices)}x {name}"


def give_back(devices: tuple[str, ...]) -> bool:
    """Give unused memory back to the GPUs; say whether something still holds on to some of it.

    What is left after a model was let go is a leak of the code that ran it, and the next model
    may not fit beside it: such a process is better replaced.
    """
    gc.collect()
    if devices[0] == "cpu":
        return False
    torch.cuda.empty_cache()
    return any(_left(device) > LEAST_LEFT for device in devices)


def refuse_busy(devices: tuple[str, ...], weight_bytes: int) -> None:
    """Make sure that a model has room before its weights are read.

    Raises:
        DeviceBusy: If other processes hold too much of the GPUs' memory.
    """
    if devices[0] == "cpu":
        return
    free = {device: torch.cuda.mem_get_info(device)[0] for device in devices}
    check_room(free, weight_bytes)


def check_room(free: dict[str, int], weight_bytes: int) -> None:
    """Compare the free bytes of GPUs with what a model needs, shared evenly.

    Raises:
        DeviceBusy: If one of them has too little.
    """
    needed = weight_bytes * ROOM_FOR_WORK / len(free)
    for device, left in free.items():
        if left < needed:
            raise DeviceBusy(
                f"{device} has {left / _GIB:.1f} GiB free and the model needs"
                f" {needed / _GIB:.1f}: another process holds its memory (see nvidia-smi), or the"
                " model needs more GPUs (resources: gpus)"
            )


def peak_bytes(devices: tuple[str, ...]) -> int | None:
    """Most memory that tensors took on the GPUs since `reset_peak`; None on CPUs."""
    if devices[0] == "cpu":
        return None
    peak: int = sum(torch.cuda.max_memory_allocated(device) for device in devices)
    return peak


def reset_peak(devices: tuple[str, ...]) -> None:
    """Count `peak_bytes` from now on."""
    if devices[0] != "cpu":
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)


def _left(device: str) -> float:
    total = torch.cuda.get_device_properties(device).total_memory
    return float(torch.cuda.memory_allocated(device) / total)
