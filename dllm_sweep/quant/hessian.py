"""The second moments of a layer's input, which the error of its rounded weight is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm_sweep.quant.capture import BlockInputs, counted, counted_weights, visit_inputs
from dllm_sweep.quant.linear import transformed

_HALVES = (torch.bfloat16, torch.float16)
"""Types whose products are exact in float32, so that a GPU's matrix units may compute them."""


@dataclass(kw_only=True)
class Hessian:
    """The sum of w x^T x over tokens x of weight w, in float32.

    A GPU multiplies half-precision inputs as they are, which is exact, and cuts float32 inputs into
    two bfloat16 parts, whose products are exact up to 2^-17 of the input: both take a small part of
    the time of float32 products.

    Attributes:
        total: (n, n).
        tokens: Number of tokens in the sum.
        weight: Sum of their weights; `tokens` if all count the same.
    """

    total: Tensor
    tokens: int = 0
    weight: float = 0.0

    @classmethod
    def over(cls, activations: Tensor, weights: Tensor | None = None) -> Hessian:
        """Start with the tokens of X (..., n); see `add`."""
        size = activations.shape[-1]
        hessian = cls(total=torch.zeros(size, size, device=activations.device))
        hessian.add(activations, weights)
        return hessian

    def add(self, activations: Tensor, weights: Tensor | None = None) -> None:
        """Add tokens.

        Args:
            activations: X (..., n), T tokens; padding must have been left out.
            weights: (T,), how much each counts, above 0; None if all count the same.
        """
        x = activations.flatten(0, -2)
        self.tokens += len(x)
        if weights is None:
            self.weight += len(x)
            self._add_products(x)
        else:
            self.weight += float(weights.double().sum())
            # The root on either side keeps the sum symmetric to the last bit.
            self._add_products(x.float() * weights.float().sqrt()[:, None])

    def _add_products(self, x: Tensor) -> None:
        if not x.is_cuda:
            self.total.addmm_(x.float().T, x.float())
        elif x.dtype in _HALVES:
            self.total += _half_products(x, x)
        else:
            self._add_split_products(x.float())

    def _add_split_products(self, x: Tensor) -> None:
        high = x.bfloat16()
        low = (x - high).bfloat16()
        self.total += _half_products(high, high)
        mixed = _half_products(high, low)
        self.total += mixed
        self.total += mixed.T

    def mean(self) -> Tensor:
        """Give 2 X^T diag(w) X / sum(w), (n, n): a token counts the same in every batch."""
        return self.total * (2 / self.weight)

    def error(self, weight: Tensor, rounded: Tensor) -> float:
        """Give tr((W - V) H (W - V)^T) for W and V (m, n): the weighted output error."""
        difference = (weight.detach() - rounded).double()
        return float(((difference @ self.mean().double()) * difference).sum())


def _half_products(x: Tensor, y: Tensor) -> Tensor:
    return torch.mm(x.T, y, out_dtype=torch.float32)


def collect_hessians(
    block: nn.Module, names: Sequence[str], inputs: BlockInputs
) -> dict[str, Hessian]:
    """Run a block on all stored inputs and sum up what the named linears read, without padding.

    What a linear reads is taken after its transform, and before it is rounded.
    """
    hessians: dict[str, Hessian] = {}

    def add(name: str, activations: Tensor, batch: int) -> None:
        x = counted(activations, inputs.weights[batch])
        x = transformed(block.get_submodule(name), x)
        weights = counted_weights(inputs.weights[batch], x.device)
        if name in hessians:
            hessians[name].add(x, weights)
        else:
            hessians[name] = Hessian.over(x, weights)

    visit_inputs(block, names, inputs, add)
    return hessians


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32: shorter mantissas would spoil a Hessian."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
