"""How much outputs change when some weights of a block do, for searches that ask many times.

For linears behind a norm that is asked of a module around them, on recorded calls of it. For a
linear that stands alone the second moments of its input answer, and no call needs to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.models.base import LinearGroup
from dllm_sweep.quant.capture import (
    BlockInputs,
    Call,
    counted,
    counted_weights,
    record_calls,
    visit_inputs,
)
from dllm_sweep.quant.hessian import Hessian


class ChangeOfOutput(Protocol):
    """Tells what other weights in some linears do to an output."""

    def with_weights(self, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> float:
        """Give the mean squared change of an output, tokens weighted.

        Args:
            linears: In full precision.
            weights: (m, n) for each of them.
        """


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """What a group of linears reads, and where the error of their weights shows.

    Attributes:
        summary: Of what they read.
        error: What other weights in them do.
    """

    summary: TokenSummary
    error: ChangeOfOutput


def inspect(
    block: nn.Module, group: LinearGroup, inputs: BlockInputs, *, search_on: str, sample: int
) -> Inspection:
    """Run a block, and look at one group of its linears.

    Their error is looked for on the smallest module around all of them: the parent of linears
    behind a norm, and otherwise the linear itself.

    Args:
        block: In full precision; scales that change no function may have been moved.
        group: Linears that share their input.
        inputs: What the block is called with.
        search_on: `module`; or `block` for the whole block in place of the parent, called with what
            the linears read: it is normalized twice then, but so it is in the study's code.
        sample: How many of the tokens are kept, at least, if there are so many.
    """
    summary = TokenSummary.of_some(inputs, sample)
    if block.get_submodule(group.source).weight.ndim == 2:
        error: ChangeOfOutput = _alone(block, group.linears[0], inputs, summary)
        return Inspection(summary=summary, error=error)
    name = group.linears[0].rpartition(".")[0]
    module, calls = block.get_submodule(name), record_calls(block, name, inputs)
    for call, weights in zip(calls, inputs.weights, strict=True):
        summary.add(call.hidden, weights)
    if search_on == "block":
        pairs = zip(calls, inputs.keywords, strict=True)
        module, calls = block, [Call(hidden=call.hidden, keywords=k) for call, k in pairs]
    error = ModuleError(module=module, calls=calls, weights=inputs.weights)
    return Inspection(summary=summary, error=error)


def _alone(block: nn.Module, name: str, inputs: BlockInputs, summary: TokenSummary) -> LinearError:
    weight = block.get_submodule(name).weight
    hessian = Hessian(total=torch.zeros(weight.shape[1], weight.shape[1], device=weight.device))

    def see(_: str, x: Tensor, batch: int) -> None:
        weights = inputs.weights[batch]
        summary.add(x, weights)
        hessian.add(counted(x, weights), counted_weights(weights, x.device))

    visit_inputs(block, [name], inputs, see)
    return LinearError(hessian)


@dataclass(kw_only=True, eq=False)
class TokenSummary:
    """Sums up tokens, one sequence after the other: it does not matter how batches are cut.

    Attributes:
        stride: Every how manieth token that counts is kept.
        tokens: How many have been seen that count.
        weight: Sum of their weights.
        total: (n,) float64, the weighted sum of their absolute values.
        kept: Tokens (T, n), each times the root of its weight.
    """

    stride: int
    tokens: int = 0
    weight: float = 0.0
    total: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)

    @classmethod
    def of_some(cls, inputs: BlockInputs, count: int) -> TokenSummary:
        """Start a summary that keeps every k-th token, k the whole number that leaves `count`."""
        pairs = zip(inputs.hidden, inputs.weights, strict=True)
        tokens = sum(x[..., 0].numel() if w is None else int((w > 0).sum()) for x, w in pairs)
        return cls(stride=max(1, tokens // count))

    def add(self, hidden: Tensor, weights: Tensor | None) -> None:
        """Add the tokens (B, L, n) of some sequences; weights (B, L), 0 for padding, or None."""
        for row, sequence in enumerate(hidden):
            of_row = None if weights is None else weights[row]
            self._add(counted(sequence, of_row), counted_weights(of_row, hidden.device))

    def _add(self, x: Tensor, weights: Tensor | None) -> None:
        magnitude, some = x.abs(), slice(-self.tokens % self.stride, None, self.stride)
        kept = x[some]
        if weights is not None:
            magnitude = x.float().abs() * weights[:, None]
            kept = kept.float() * weights[some, None].sqrt()
        total = magnitude.sum(0, dtype=torch.float64)
        self.total = total if self.total is None else self.total + total
        self.weight += len(x) if weights is None else float(weights.double().sum())
        self.tokens += len(x)
        self.kept.append(kept.clone())

    def mean_magnitude(self) -> Tensor:
        """Give the weighted mean of |x_j| over tokens, (n,) float64.

        Raises:
            QuantizationError: If a token holds a NaN or an infinity, or no token counts.
        """
        if self.total is None or not self.weight:
            raise QuantizationError("no token of the calibration text counts")
        mean = self.total / self.weight
        if not bool(torch.isfinite(mean).all()):
            raise QuantizationError(
                "its inputs are not finite on the calibration text; load the model in bfloat16 or"
                " float32"
            )
        return mean

    def sample(self) -> Tensor:
        """Give the kept tokens (T, n)."""
        return torch.cat(self.kept)


@dataclass(frozen=True)
class LinearError:
    """The change of a linear's output, from the second moments of its input.

    Attributes:
        hessian: Of that input.
    """

    hessian: Hessian

    def with_weights(self, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> float:
        """Give the mean squared change of an output with other weights; see `ChangeOfOutput`."""
        moments, error, outputs = self._moments, 0.0, 0
        for linear, weight in zip(linears, weights, strict=True):
            difference = weight.to(linear.weight.dtype).float() - linear.weight.detach().float()
            error += float((difference @ moments).mul_(difference).sum(dtype=torch.float64))
            outputs += len(weight)
        return error / outputs

    @cached_property
    def _moments(self) -> Tensor:
        return self.hessian.mean() / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleError:
    """The change of a module's output on recorded calls.

    Attributes:
        module: In full precision.
        calls: What it is called with, (B, L, n) for each batch.
        weights: (B, L) for each batch, how much a token counts, 0 for padding; None if all tokens
            count the same.
    """

    module: nn.Module
    calls: Sequence[Call]
    weights: Sequence[Tensor | None]

    def with_weights(self, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> float:
        """Give the mean squared change of an output with other weights; see `ChangeOfOutput`."""
        total, count = torch.zeros(2, dtype=torch.float64, device=self._expected[0].device)
        with _weights_replaced(linears, weights):
            for call, expected, counts in zip(
                self.calls, self._expected, self.weights, strict=True
            ):
                change = call.repeat(self.module) - expected
                norms = torch.linalg.vector_norm(change, dim=-1, dtype=torch.float32)
                error, tokens = _weighted_sum(norms.double().square(), counts)
                total, count = total + error, count + tokens * change.shape[-1]
        return float(total / count)

    @cached_property
    def _expected(self) -> list[Tensor]:
        return [call.repeat(self.module) for call in self.calls]


def _weighted_sum(errors: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | int]:
    # Without waiting for the device: one number a search step is read back, not one a batch.
    if weights is None:
        return errors.sum(), errors.numel()
    weights = weights.to(errors.device).double()
    return torch.where(weights > 0, errors * weights, 0.0).sum(), weights.sum()


@contextmanager
def _weights_replaced(linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> Iterator[None]:
    kept = [linear.weight for linear in linears]
    try:
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight = weight
