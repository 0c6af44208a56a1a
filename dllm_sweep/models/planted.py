"""Activation outliers planted by exact rescaling: another representation of the same function.

A channel of a norm's output is made `scale` times larger and the columns of the linears that
read it as many times smaller; likewise the rows of the up-projection and the columns of the
down-projection, which is exact because the up branch enters the product linearly. With a power
of two every floating-point product is the same number as before, so the logits do not change,
while quantizing the activations to few bits becomes much harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from dllm_sweep.models.base import DiffusionModel, LinearGroup


@dataclass(frozen=True, kw_only=True)
class PlantedOutliers:
    """How many channels are scaled, and how much.

    Attributes:
        base: Name of the embedded checkpoint whose function is kept.
        norm_channels: Channels of every norm's output, the same in all blocks, as the persistent
            channels of trained models are.
        norm_scale: Their factor, a power of two.
        ffn_channels: Channels of every up-projection's output.
        ffn_scale: Their factor, a power of two.
    """

    base: str
    norm_channels: int
    norm_scale: float
    ffn_channels: int
    ffn_scale: float


# At a factor of 16 round-to-nearest still does well at 8-bit activations and fails at 4 bits, as
# the outliers of large models make it; at 64 it already loses at 8 bits.
VARIANTS = {
    f"{base}-outliers": PlantedOutliers(
        base=base, norm_channels=4, norm_scale=16.0, ffn_channels=4, ffn_scale=16.0
    )
    for base in ("llada-tiny", "dream-tiny")
}
"""Models that exist only as a rescaling of an embedded checkpoint."""


def plant_outliers(model: DiffusionModel, planted: PlantedOutliers) -> None:
    """Rescale `model` in place; its logits stay equal, bit for bit unless a value underflows.

    In float32 and bfloat16 none does; float16 has too few exponents for that.
    """
    for block in model.blocks:
        for group in model.family.linear_groups:
            _plant(block, group, planted)


def spread(size: int, count: int) -> list[int]:
    """Choose `count` different indices below `size`, one in the middle of each equal part.

    Spreading puts them into different quantization groups.
    """
    return sorted({(2 * part + 1) * size // (2 * count) for part in range(count)})


def _plant(block: nn.Module, group: LinearGroup, planted: PlantedOutliers) -> None:
    source = block.get_submodule(group.source)
    linears = [block.get_submodule(name) for name in group.linears]
    if source.weight.ndim == 1:
        channels = spread(source.weight.shape[0], planted.norm_channels)
        _rescale(source, linears, channels, planted.norm_scale)
    elif group.source == "mlp.up_proj":
        channels = spread(source.weight.shape[0], planted.ffn_channels)
        _rescale(source, linears, channels, planted.ffn_scale)


def _rescale(
    source: nn.Module, linears: list[nn.Module], channels: list[int], scale: float
) -> None:
    source.weight.data[channels] *= scale
    for linear in linears:
        linear.weight.data[:, channels] /= scale
