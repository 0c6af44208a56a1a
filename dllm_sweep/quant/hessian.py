"""The second moments of a layer's input, which the error of its rounded weight is made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from dllm_sweep.errors import QuantizationError

_DAMPING_RETRIES = 3
_LEAST_RETRY = 1e-3


@dataclass(kw_only=True)
class Hessian:
    """The sum of w x^T x over tokens x of weight w, in float32.

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
            self._add_products(x.float())
        else:
            self.weight += float(weights.double().sum())
            # The root on either side keeps the sum symmetric to the last bit.
            self._add_products(x.float() * weights.float().sqrt()[:, None])

    def _add_products(self, x: Tensor) -> None:
        self.total.addmm_(x.T, x)

    def mean(self) -> Tensor:
        """Give 2 X^T diag(w) X / sum(w), (n, n): a token counts the same in every batch."""
        return self.total * (2 / self.weight)

    def error(self, weight: Tensor, rounded: Tensor) -> float:
        """Give tr((W - V) H (W - V)^T) for W and V (m, n): the weighted output error."""
        difference = (weight.detach() - rounded).double()
        return float(((difference @ self.mean().double()) * difference).sum())


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32: shorter mantissas would spoil a Hessian."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


def inverse_factor(
    hessian: Tensor, dead: Tensor, order: Tensor, damping: float
) -> tuple[Tensor, float]:
    """Factorize the inverse of the damped Hessian, with more damping where that fails.

    Args:
        hessian: (n, n).
        dead: (n,) bool, inputs whose diagonal becomes 1.
        order: (n,) int64, the order of the inputs in the factor.
        damping: Share of the mean diagonal to add first; it grows tenfold after each failure.

    Returns:
        The upper Cholesky factor (n, n) of the inverse, float32, and the damping that worked.

    Raises:
        QuantizationError: If the Hessian is not finite, or no damping helps.
    """
    if not bool(torch.isfinite(hessian).all()):
        raise QuantizationError("the Hessian of its inputs is not finite; do activations overflow?")
    damped = hessian.float()[order][:, order]
    diagonal = damped.diagonal()
    # Dead inputs count as 0 in the mean: the damping, and with it the result, must not depend on
    # whether the Hessian is a sum over tokens or a mean.
    mean = diagonal.mean()
    diagonal.masked_fill_(dead[order], 1)
    added = 0.0
    retries = (max(damping, _LEAST_RETRY) * 10**k for k in range(1, _DAMPING_RETRIES + 1))
    for attempt in (damping, *retries):
        diagonal.add_((attempt - added) * mean)
        added = attempt
        for dtype in (torch.float32, torch.float64):
            factor = _try_inverse_factor(damped.to(dtype))
            if factor is not None:
                return factor.float(), attempt
    raise QuantizationError(
        f"the Hessian of its inputs cannot be factorized, even with damping {added:g};"
        " use more calibration text"
    )


def _try_inverse_factor(damped: Tensor) -> Tensor | None:
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor = torch.linalg.cholesky(inverse, upper=True)
    except torch.linalg.LinAlgError:
        return None
    return factor if bool(torch.isfinite(factor).all()) else None
