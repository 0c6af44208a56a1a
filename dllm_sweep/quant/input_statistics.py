"""What every linear of a full-precision model reads: the statistics that scaling methods share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.capture import TokenBatch, counted, evaluating, token_weights, watching


@dataclass(frozen=True, kw_only=True, eq=False)
class InputStatistics:
    """Statistics of one linear's input over all tokens, padding left out, for each channel.

    Attributes:
        largest: (n,) float32, the greatest value.
        smallest: (n,) float32, the least value.
        mean_magnitude: (n,) float64, the mean of the absolute values.
        tokens: () int64, how many tokens were seen.
    """

    largest: Tensor
    smallest: Tensor
    mean_magnitude: Tensor
    tokens: Tensor

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
    model: DiffusionModel, batches: Sequence[TokenBatch]
) -> dict[str, InputStatistics]:
    """Run a model on calibration text and sum up what its linears read.

    Linears that share an input are measured once.

    Args:
        model: In full precision.
        batches: What it sees; at least one.

    Returns:
        Statistics by the linear's full name, in depth order, on the CPU.
    """
    firsts = _first_of_group(model)
    seen: dict[str, InputStatistics] = {}
    with evaluating(model.host):
        for batch in batches:
            mask = batch.attention_mask
            weights = token_weights(batch, model.device)

            def see(name: str, x: Tensor, weights: Tensor | None = weights) -> None:
                new = _measure(counted(x, weights))
                seen[name] = _both(seen[name], new) if name in seen else new

            with watching(model.host, set(firsts.values()), see):
                model.logits(
                    batch.input_ids.to(model.device),
                    None if mask is None else mask.to(model.device),
                )
    return {name: seen[first] for name, first in firsts.items()}


def _first_of_group(model: DiffusionModel) -> dict[str, str]:
    """For every linear, the first of those that read the same input."""
    return {
        f"{model.block_name(index)}.{name}": f"{model.block_name(index)}.{group.linears[0]}"
        for index in range(len(model.blocks))
        for group in model.family.linear_groups
        for name in group.linears
    }


def _measure(x: Tensor) -> InputStatistics:
    return InputStatistics(
        largest=x.amax(0).float().cpu(),
        smallest=x.amin(0).float().cpu(),
        mean_magnitude=x.double().abs().mean(0).cpu(),
        tokens=torch.tensor(len(x)),
    )


def _both(first: InputStatistics, second: InputStatistics) -> InputStatistics:
    tokens = first.tokens + second.tokens
    total = first.mean_magnitude * first.tokens + second.mean_magnitude * second.tokens
    return InputStatistics(
        largest=torch.maximum(first.largest, second.largest),
        smallest=torch.minimum(first.smallest, second.smallest),
        mean_magnitude=total / tokens,
        tokens=tokens,
    )
