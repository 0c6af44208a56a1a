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
    """The sum of X^T X over tokens, in float32.

    Attributes:
        total: (n, n).
        tokens: Number of tokens in the sum.
    """

    total: Tensor
    tokens: int = 0

    @classmethod
    def over(cls, activations: Tensor) -> Hessian:
        """Start with the tokens of X (..., n)."""
        size = activations.shape[-1]
        hessian = cls(total=torch.zeros(size, size, device=activations.device))
        hessian.add(activations)
        return hessian

    def add(self, activations: Tensor) -> None:
        """Add the tokens of X (..., n); padding must have been left out."""
        x = activations.float().flatten(0, -2)
        self.total.addmm_(x.T, x)
        self.tokens += len(x)

    def mean(self) -> Tensor:
        """Give (2 / T) X^T X, (n, n): every token counts the same, however batches are cut."""
        return self.total * (2 / self.tokens)

    def error(self, weight: Tensor, rounded: Tensor) -> float:
        """Give tr((W - V) H (W - V)^T) for W and V (m, n): the output error over all tokens."""
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
