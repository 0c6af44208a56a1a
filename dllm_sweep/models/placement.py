"""One model on several GPUs: each holds a run of blocks, and hidden states go from one to the next.

The embeddings, the final norm and the output head are on the first device: ids go in and logits
come out there, and weights that embeddings and head share are there once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_BLOCK = re.compile(r"model\.layers\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Which device holds what.

    Attributes:
        blocks: The device of each block, in depth order.
        rest: The device of everything else.
    """

    blocks: tuple[torch.device, ...]
    rest: torch.device

    @classmethod
    def even(
        cls, shapes: Mapping[str, Sequence[int]], devices: Sequence[torch.device]
    ) -> Placement:
        """Share blocks out in their order, so that each device holds about as many weights.

        Args:
            shapes: Parameter name -> shape, all of them.
            devices: At least one; the first holds what is outside the blocks, too.
        """
        sizes: dict[int | None, int] = {}
        for name, shape in shapes.items():
            block = _block_of(name)
            sizes[block] = sizes.get(block, 0) + math.prod(shape)
        outside = sizes.pop(None, 0)
        share = (outside + sum(sizes.values())) / len(devices)
        placed, before = [], outside
        for _, size in sorted(sizes.items(), key=lambda item: item[0] or 0):
            # A block goes where its middle falls.
            number = min(int((before + size / 2) / share), len(devices) - 1)
            placed.append(devices[number])
            before += size
        return cls(blocks=tuple(placed), rest=devices[0])

    def of(self, name: str) -> torch.device:
        """The device of the parameter `name`."""
        block = _block_of(name)
        return self.rest if block is None else self.blocks[block]


def connect(host: nn.Module, placement: Placement) -> None:
    """Move hidden states, and whatever else a block is called with, to where the block is.

    A block that is called on its own, as layer-wise methods do, finds its inputs moved, too.
    """
    if all(device == placement.rest for device in placement.blocks):
        return
    for block, device in zip(host.model.layers, placement.blocks, strict=True):
        block.register_forward_pre_hook(mover(device), with_kwargs=True)
    host.model.norm.register_forward_pre_hook(mover(placement.rest), with_kwargs=True)


def mover(device: torch.device) -> Any:
    """Make a forward pre-hook (with keywords) that moves what a module is called with."""

    def move(_: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return _moved(args, device), _moved(keywords, device)

    return move


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    if isinstance(value, dict):
        return {name: _moved(one, device) for name, one in value.items()}
    return value


def _block_of(name: str) -> int | None:
    match = _BLOCK.match(name)
    return int(match[1]) if match else None
