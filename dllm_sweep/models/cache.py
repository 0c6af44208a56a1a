"""Keys and values kept between the forward passes of one batch (Fast-dLLM, arXiv 2505.22618).

Positions are absolute and keys are stored after their rotation, so a part of a sequence can be
forwarded again at its place while the rest is as it was.
"""

from __future__ import annotations

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every block of a model, for one batch of sequences.

    A forwarded part overwrites the slots of its positions and leaves the others alone. Forwarding
    `x[a:]` again and again is Fast-dLLM's prefix cache, forwarding `x[a:b]` its dual cache. With
    full attention both are approximate, because kept keys and values would change with the rest;
    with block-causal attention the keys and values of finished blocks are exact.
    """

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Number of positions kept."""
        return next((keys.shape[2] for keys, _ in self._kept.values()), 0)

    def write(self, block: int, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Overwrite the slots from `start` on in one block.

        Args:
            block: Its index.
            start: Position of the first new slot, at most the number kept.
            keys: (B, H, N, D), rotated.
            values: (B, H, N, D).

        Returns:
            Keys and values of all positions kept now.

        Raises:
            ValueError: If there would be a gap before `start`.
        """
        kept = self._kept.get(block)
        length, stop = 0 if kept is None else kept[0].shape[2], start + keys.shape[2]
        if start > length:
            raise ValueError(f"positions from {length} to {start} were never forwarded")
        if kept is None or (start == 0 and stop >= length):
            self._kept[block] = (keys, values)
        elif stop <= length:
            kept[0][:, :, start:stop], kept[1][:, :, start:stop] = keys, values
        else:
            self._kept[block] = (
                torch.cat((kept[0][:, :, :start], keys), 2),
                torch.cat((kept[1][:, :, :start], values), 2),
            )
        return self._kept[block]

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        """Keep only some rows of the batch.

        Args:
            rows: (R,) int64, their numbers in the new order.
        """
        self._kept = {
            block: (keys[rows.to(keys.device)], values[rows.to(values.device)])
            for block, (keys, values) in self._kept.items()
        }


class Slots:
    """A place in a cache, in the form in which transformers' attention asks for one."""

    def __init__(self, cache: KeyValueCache, start: int) -> None:
        self._cache, self._start = cache, start

    def update(
        self, keys: Tensor, values: Tensor, layer_idx: int, *_: object
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values and give those of all positions."""
        return self._cache.write(layer_idx, self._start, keys, values)


class Given:
    """Keys and values that attention takes instead of those of its own input."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._given = (keys, values)

    def update(self, *_: object) -> tuple[Tensor, Tensor]:
        """Give them."""
        return self._given
