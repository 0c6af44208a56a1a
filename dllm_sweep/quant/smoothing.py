"""SmoothQuant's migration (arXiv 2211.10438): divide activations, multiply weights, channel by
channel, so that large activation channels become easier to round and weights a little harder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from dllm_sweep.models.base import DiffusionModel, LinearGroup
from dllm_sweep.quant.fuse import (
    divide_outputs,
    multiply_inputs,
    takes_output_scales,
    transform_online,
)
from dllm_sweep.quant.input_statistics import InputStatistics
from dllm_sweep.quant.transforms import Scaling

LEAST = 1e-5
"""Least scale, and least weight maximum that one is computed from."""


def smoothing_scales(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Give s_j = max|x_j|^alpha / max|w_j|^(1 - alpha), equation 4 of the paper.

    Args:
        activations: (n,), the greatest absolute value of each input.
        weights: (n,), the greatest absolute weight of each input.
        alpha: Share of the difficulty that goes into the weights, in [0, 1].

    Returns:
        (n,) float32, at least 1e-5; 1 for inputs that are always zero.
    """
    activations, weights = activations.float(), weights.float().clamp(min=LEAST)
    scales = (activations.pow(alpha) / weights.pow(1 - alpha)).clamp(min=LEAST)
    return scales.masked_fill(activations == 0, 1.0)


def weight_magnitude(linears: Sequence[nn.Module]) -> Tensor:
    """Give the greatest absolute weight of each input over all the linears that read it, (n,)."""
    return torch.stack([linear.weight.detach().abs().amax(0).float() for linear in linears]).amax(0)


@torch.no_grad()
def smooth(
    model: DiffusionModel,
    statistics: Mapping[str, InputStatistics],
    *,
    alpha: float,
    norms_only: bool,
    chosen: Collection[str],
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
    """
    for index, block in enumerate(model.blocks):
        prefix = f"{model.block_name(index)}."
        for group in model.family.linear_groups:
            names = [prefix + name for name in group.linears if prefix + name in chosen]
            behind_norm = block.get_submodule(group.source).weight.ndim == 1
            if names and (behind_norm or not norms_only):
                magnitude = statistics[prefix + group.linears[0]].magnitude
                _smooth_group(model.host, block, group, magnitude, alpha, names)


def _smooth_group(
    host: nn.Module,
    block: nn.Module,
    group: LinearGroup,
    magnitude: Tensor,
    alpha: float,
    names: Sequence[str],
) -> None:
    source = block.get_submodule(group.source)
    linears = [block.get_submodule(name) for name in group.linears]
    weights = weight_magnitude(linears)
    scales = smoothing_scales(magnitude.to(weights.device), weights, alpha)
    if takes_output_scales(source, len(scales)):
        divide_outputs(source, scales)
        multiply_inputs(linears, scales)
        return
    online = Scaling(scales)
    for name in names:
        transform_online(host, name, online)
