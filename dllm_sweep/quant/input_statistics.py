"""What every linear of a full-precision model reads: the statistics that scaling methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm_sweep.models.base import DiffusionModel, LinearGroup
from dllm_sweep.quant.capture import (
    BlockInputs,
    TokenBatch,
    capture_first_block,
    counted,
    evaluating,
    weighted,
)
from dllm_sweep.quant.visiting import visiting


@dataclass(frozen=True, kw_only=True, eq=False)
class InputStatistics:
    """Statistics of one linear's input, for each channel, over all tokens of positive weight.

    Attributes:
        largest: (n,) float32, the greatest value.
        smallest: (n,) float32, the least value.
        mean_magnitude: (n,) float64, the weighted mean of the absolute values.
        tokens: () int64, how many tokens were seen.
        weight: () float64, the sum of their weights.
    """

    largest: Tensor
    smallest: Tensor
    mean_magnitude: Tensor
    tokens: Tensor
    weight: Tensor

    @property
    def magnitude(self) -> Tensor:
        """(n,) float32, the greatest absolute value."""
        return torch.maximum(self.largest, -self.smallest)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, to be kept."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], name: str) -> InputStatistics:
        """Find the statistics of the linear `name` among tensors kept as `<linear>.<field>`."""
        return cls(**{f.name: tensors[f"{name}.{f.name}"] for f in dataclasses.fields(cls)})


@torch.no_grad()
def input_statistics(
    model: DiffusionModel,
    batches: Sequence[TokenBatch],
    device: torch.device | None = None,
) -> dict[str, InputStatistics]:
    """Run a model block by block on calibration text and sum up what its linears read.

    Linears that share an input are measured once.

    Args:
        model: In full precision.
        batches: What it sees; at least one token must have a positive weight.
        device: Where blocks are computed, which they visit one after the other; None is where
            their weights are.

    Returns:
        Statistics by the linear's full name, in depth order, on the CPU.
    """
    measured: dict[str, InputStatistics] = {}
    with evaluating(model.host):
        inputs = capture_first_block(model, batches)
        for index, block in enumerate(model.blocks):
            with visiting(block, device):
                found = _of_block(block, model.family.linear_groups, inputs)
            prefix = f"{model.block_name(index)}."
            measured |= {f"{prefix}{name}": one for name, one in found.items()}
    return measured


def _of_block(
    block: nn.Module, groups: Sequence[LinearGroup], inputs: BlockInputs
) -> dict[str, InputStatistics]:
    """Statistics by name within the block; the stored hidden states move on to its outputs."""
    seen: dict[str, InputStatistics] = {}

    def see(name: str, x: Tensor, batch: int) -> None:
        weights = inputs.weights[batch]
        if weights is not None and not bool((weights > 0).any()):
            return
        new = _measure(x, weights)
        seen[name] = _both(seen[name], new) if name in seen else new

    inputs.advance(block, [group.linears[0] for group in groups], see)
    return {name: seen[group.linears[0]] for group in groups for name in group.linears}


def _measure(activations: Tensor, weights: Tensor | None) -> InputStatistics:
    x = counted(activations, weights)
    magnitude, weight = weighted(activations.double().abs(), weights)
    return InputStatistics(
        largest=x.amax(0).float().cpu(),
        smallest=x.amin(0).float().cpu(),
        mean_magnitude=(magnitude.sum(0) / weight).cpu(),
        tokens=torch.tensor(len(x)),
        weight=torch.tensor(weight, dtype=torch.float64),
    )


def _both(first: InputStatistics, second: InputStatistics) -> InputStatistics:
    weight = first.weight + second.weight
    total = first.mean_magnitude * first.weight + second.mean_magnitude * second.weight
    return InputStatistics(
        largest=torch.maximum(first.largest, second.largest),
        smallest=torch.minimum(first.smallest, second.smallest),
        mean_magnitude=total / weight,
        tokens=first.tokens + second.tokens,
        weight=weight,
    )
