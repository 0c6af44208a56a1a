"""SmoothQuant's migration (arXiv 2211.10438): divide activations, multiply weights, channel by
channel, so that large activation channels become easier to round and weights a little harder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.models.base import DiffusionModel, LinearGroup
from dllm_sweep.quant.fuse import (
    divide_outputs,
    multiply_inputs,
    takes_output_scales,
    transform_online,
)
from dllm_sweep.quant.input_statistics import InputStatistics
from dllm_sweep.quant.transforms import Scaling
from dllm_sweep.quant.visiting import visiting

LEAST = 1e-5
"""Least scale, and least weight maximum that one is computed from."""
SCALE_FROM = ("all", "first")
"""Whose weights the scales of a group are computed from: all its linears', or those of one alone,
the query projection or the up projection, which is the first that the study's code names."""


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Give s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), equation 4 of the paper.

    Args:
        activations: (n,), the greatest absolute value of each input.
        weights: (n,), the greatest absolute weight of each input.
        alpha: Share of the difficulty that goes into the weights, in [0, 1].

    Returns:
        (n,) float32, at least 1e-5; 1 for inputs that are always zero.

    Raises:
        QuantizationError: If an activation is not finite.
    """
    if not bool(torch.isfinite(activations).all()):
        raise QuantizationError(
            "its inputs are not finite on the calibration text; load the model in bfloat16 or"
            " float32"
        )
    activations, weights = activations.float(), weights.float().clamp(min=LEAST)
    scales = (activations.pow(alpha) / weights.pow(1 - alpha)).clamp(min=LEAST)
    return scales.masked_fill(activations == 0, 1.0)


def weight_magnitude(linears: Sequence[nn.Module]) -> Tensor:
    """Give the greatest absolute weight of each input over all the linears that read it, (n,)."""
    return torch.stack([linear.weight.detach().abs().amax(0).float() for linear in linears]).amax(0)


def first_of(group: LinearGroup) -> str:
    """Name the linear that decides for its group with `scale_from="first"`."""
    return next((name for name in group.linears if name.endswith("up_proj")), group.linears[0])


@torch.no_grad()
def smooth(
    model: DiffusionModel,
    statistics: Mapping[str, InputStatistics],
    *,
    alpha: float,
    norms_only: bool,
    chosen: Collection[str],
    scale_from: str = "all",
    online: bool = True,
    device: torch.device | None = None,
) -> None:
    """Smooth the inputs of a model's linears; the model computes the same function as before.

    Scales are divided out of the norm or linear in front. Where that has other channels (the
    value projection under grouped queries), the input is divided at every call instead.

    Args:
        model: In full precision, changed in place.
        statistics: What each linear reads, by full name.
        alpha: Share of the difficulty that goes into the weights, in [0, 1].
        norms_only: Whether only linears behind a norm are smoothed, as in the paper.
        chosen: Full names of the linears that will be quantized; groups without one are left out.
        scale_from: One of `SCALE_FROM`.
        online: Whether inputs may be divided at every call; otherwise those that would have to be
            are left as they are.
        device: Where the blocks are computed; None is where their weights are.

    Raises:
        QuantizationError: If activations are not finite, or a smoothed tensor does not fit the
            model's dtype; the message names the linear.
    """
    smoothing = _Smoothing(
        model, statistics, alpha, norms_only, frozenset(chosen), scale_from, online
    )
    for index, block in enumerate(model.blocks):
        with visiting(block, device):
            smoothing.smooth_block(index, block)


@dataclass(frozen=True)
class _Smoothing:
    model: DiffusionModel
    statistics: Mapping[str, InputStatistics]
    alpha: float
    norms_only: bool
    chosen: frozenset[str]
    scale_from: str
    online: bool

    def smooth_block(self, index: int, block: nn.Module) -> None:
        """Smooth what the chosen linears of one block read."""
        prefix = f"{self.model.block_name(index)}."
        for group in self.model.family.linear_groups:
            names = [prefix + name for name in group.linears if prefix + name in self.chosen]
            behind_norm = block.get_submodule(group.source).weight.ndim == 1
            if names and (behind_norm or not self.norms_only):
                magnitude = self.statistics[prefix + group.linears[0]].magnitude
                self._smooth_group(block, group, magnitude, names)

    def _smooth_group(
        self, block: nn.Module, group: LinearGroup, magnitude: Tensor, names: Sequence[str]
    ) -> None:
        source = block.get_submodule(group.source)
        linears = [block.get_submodule(name) for name in group.linears]
        deciding = linears if self.scale_from == "all" else [block.get_submodule(first_of(group))]
        weights = weight_magnitude(deciding)
        try:
            scales = smoothing_scales(magnitude.to(weights.device), weights, self.alpha)
            if takes_output_scales(source, len(scales)):
                divide_outputs(source, scales)
                multiply_inputs(linears, scales)
            elif self.online:
                transform = Scaling(scales)
                for name in names:
                    transform_online(self.model.host, name, transform)
        except QuantizationError as error:
            raise QuantizationError(f"{names[0]}: {error}") from error
