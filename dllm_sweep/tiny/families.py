"""The families that a tiny model can be trained as: its shape, its layout, how it predicts."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_sweep.tiny.export import DREAM, LLADA, Layout
from dllm_sweep.tiny.network import Shape


@dataclass(frozen=True, kw_only=True)
class Family:
    """What makes a tiny model one of a family.

    Attributes:
        shape: Sizes of its network.
        layout: How its checkpoint is written.
        shifted: Whether the prediction for position i is read at position i - 1.
    """

    shape: Shape
    layout: Layout
    shifted: bool


#: A quarter of the key heads and a wider feed-forward layer: as many weights as the other one.
_GROUPED = Shape(key_heads=2, feed_forward=896, norm_eps=1e-6, qkv_bias=True)

FAMILIES = {
    "llada": Family(shape=Shape(), layout=LLADA, shifted=False),
    "dream": Family(shape=_GROUPED, layout=DREAM, shifted=True),
}
