"""Blocks whose weights live on the CPU and visit a device while they are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from dllm_sweep.models.placement import mover


@contextmanager
def visiting(block: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Hold a block's parameters and buffers on a device meanwhile, and back home afterwards.

    Whatever the block is called with goes to the device, too. What was put into the block in the
    meantime, such as a quantized linear, goes home with the rest; parameters keep their class.

    Args:
        block: Its home is where its first parameter is.
        device: Where it is computed; None leaves everything where it is.
    """
    home = next(block.parameters()).device
    if device is None or home == device:
        yield
        return
    block.to(device)
    hook = block.register_forward_pre_hook(mover(device), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        block.to(home)
