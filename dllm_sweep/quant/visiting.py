"""Blocks whose weights live on the CPU and visit a device while they are worked on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dllm_sweep.models.placement import mover


@contextmanager
def visiting(block: nn.Module, device: torch.device | None) -> Iterator[None]:
    """Hold a block's parameters and buffers on a device meanwhile, and back home afterwards.

    Whatever the block is called with goes to the device, too. What was put into the block in the
    meantime, such as a quantized linear, goes home with the rest; parameters keep their class.

    Args:
        block: Its home is where its first tensor is.
        device: Where it is computed; None leaves everything where it is.
    """
    home = next((tensor.device for tensor in _tensors(block)), None)
    if device is None or home is None or home == device:
        yield
        return
    move(block, device)
    hook = block.register_forward_pre_hook(mover(device), with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        move(block, home)


def move(module: nn.Module, device: torch.device) -> None:
    """Move all tensors of a module in place; tensors that submodules share stay shared."""
    for tensor in _tensors(module):
        tensor.data = tensor.data.to(device)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
