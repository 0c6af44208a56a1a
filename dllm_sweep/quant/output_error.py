"""How much a module's output changes when some weights in it do, on recorded calls of it.

Held in memory are the calls' inputs and the outputs expected of them, for one group of linears at
a time. Everything else is as large as one sequence or one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.capture import Call, counted, counted_weights


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedInputs:
    """What a module was called with on all calibration batches.

    Attributes:
        calls: One for each batch; the hidden states are (B, L, n).
        weights: (B, L) for each batch, how much a token counts, 0 for padding; None if all tokens
            count the same.
    """

    calls: Sequence[Call]
    weights: Sequence[Tensor | None]

    @property
    def channels(self) -> int:
        """The number n of inputs."""
        return self.calls[0].hidden.shape[-1]

    def mean_magnitude(self) -> Tensor:
        """Give the weighted mean of |x_j| over tokens, (n,) float64.

        Raises:
            QuantizationError: If a token holds a NaN or an infinity, or no token counts.
        """
        total, weight = 0.0, 0.0
        for x, each in self._sequences():
            magnitude = x.abs() if each is None else x.float().abs() * each[:, None]
            total = total + magnitude.sum(0, dtype=torch.float64)
            weight += float(len(x) if each is None else each.double().sum())
        if not weight:
            raise QuantizationError("no token of the calibration text counts")
        mean = torch.as_tensor(total) / weight
        if not bool(torch.isfinite(mean).all()):
            raise QuantizationError(
                "its inputs are not finite on the calibration text; load the model in bfloat16 or"
                " float32"
            )
        return mean

    def sample(self, count: int) -> Tensor:
        """Give every k-th token that counts, k the whole number that leaves at least `count`.

        Returns:
            (T, n), each token times the root of its weight, so that its square counts as it should.
        """
        tokens = sum(len(x) for x, _ in self._sequences())
        stride = max(1, tokens // count)
        kept, before = [], 0
        for x, each in self._sequences():
            first = -before % stride
            part = x[first::stride]
            kept.append(part if each is None else part.float() * each[first::stride, None].sqrt())
            before += len(x)
        return torch.cat(kept)

    def _sequences(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        # One after the other: sums do not depend on how batches are cut.
        for call, weights in zip(self.calls, self.weights, strict=True):
            for row, x in enumerate(call.hidden):
                each = None if weights is None else weights[row]
                yield counted(x, each), counted_weights(each, x.device)


@dataclass(frozen=True, eq=False)
class OutputError:
    """The change of a module's output on recorded calls.

    Attributes:
        module: In full precision.
        inputs: What it is called with.
    """

    module: nn.Module
    inputs: RecordedInputs
    expected: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        outputs = [call.repeat(self.module) for call in self.inputs.calls]
        object.__setattr__(self, "expected", outputs)

    def with_weights(self, linears: Sequence[nn.Module], weights: Sequence[Tensor]) -> float:
        """Give the weighted mean squared change of an output with other weights in some linears.

        Args:
            linears: Within the module.
            weights: (m, n) for each of them.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.expected[0].device)
        count = torch.zeros_like(total)
        with _weights_replaced(linears, weights):
            for call, expected, counts in zip(
                self.inputs.calls, self.expected, self.inputs.weights, strict=True
            ):
                change = call.repeat(self.module).float().sub_(expected).square_()
                error, tokens = _weighted_sum(change.mean(-1, dtype=torch.float64), counts)
                total, count = total + error, count + tokens
        return float(total / count)


def _weighted_sum(errors: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | int]:
    # Without waiting for the device: one number a search step is read back, not one a batch.
    if weights is None:
        return errors.sum(), errors.numel()
    weights = weights.to(errors.device).double()
    kept = torch.where(weights > 0, errors * weights, 0.0)
    return kept.sum(), weights.sum()


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
