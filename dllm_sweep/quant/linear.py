"""A linear layer with rounded weights that also rounds its input: simulated quantization."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from torch import Tensor, nn
from torch.nn.functional import linear

from dllm_sweep.kernels.fake_quantize_tokens import fake_quantize_tokens
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.transforms import InputTransform
from dllm_sweep.spec import FULL_PRECISION_BITS


@dataclass(frozen=True, kw_only=True)
class ActivationQuantization:
    """How the input of a linear is rounded, dynamically for each token.

    Attributes:
        bits: 2 to 8; 16 leaves the input as it is.
        symmetric: Whether the grid is symmetric around zero.
        clip_ratio: Share of the token's range that the grid spans, in (0, 1].
    """

    bits: int = FULL_PRECISION_BITS
    symmetric: bool = True
    clip_ratio: float = 1.0


class TransformedLinear(nn.Module):
    """Stands in for an `nn.Linear` whose input is transformed first; the weight is not rounded.

    Args:
        weight: (outputs, inputs), with the transform folded in; kept as it is, not copied.
        bias: (outputs,), or None.
        transform: Applied to the input; None leaves it as it is.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, transform: InputTransform | None = None
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.transform = transform
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, activations: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return linear(self.operand(activations), self.weight, self.bias)

    def operand(self, activations: Tensor) -> Tensor:
        """Give what the weight is multiplied with, (..., inputs) in the weight's dtype."""
        return transformed(self, activations).to(self.weight.dtype)


class QuantLinear(TransformedLinear):
    """Stands in for an `nn.Linear` whose weight has been rounded.

    The weight holds the dequantized values in the model's dtype; with 16-bit activations and no
    transform the result is bit for bit that of an `nn.Linear` with this weight.

    Args:
        weight: (outputs, inputs), dequantized; kept as it is, not copied.
        bias: (outputs,), or None.
        activation: How the input is rounded.
        transform: Applied to the input before it is rounded; None leaves it as it is.
        grid: What the weight was rounded to; None if it is not known, or the weight not rounded.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: ActivationQuantization | None = None,
        transform: InputTransform | None = None,
        grid: WeightGrid | None = None,
    ) -> None:
        super().__init__(weight, bias, transform)
        self.activation = activation or ActivationQuantization()
        self.grid = grid

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The grid is no buffer: it goes where the weight goes, but its numbers stay as they are.
        super()._apply(fn, recurse)
        self.grid = None if self.grid is None else self.grid.to(self.weight.device)
        return self

    def operand(self, activations: Tensor) -> Tensor:
        """Transform and round the input (..., inputs); the result has the weight's dtype."""
        activations = transformed(self, activations)
        if self.activation.bits < FULL_PRECISION_BITS:
            activations = fake_quantize_tokens(
                activations,
                bits=self.activation.bits,
                symmetric=self.activation.symmetric,
                clip_ratio=self.activation.clip_ratio,
            )
        return activations.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Show the sizes and the activation bits in the module's text."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features},"
            f" a_bits={self.activation.bits}"
        )


def transform_of(module: nn.Module) -> InputTransform | None:
    """Give what a linear does to its input before anything else; None if nothing."""
    return module.transform if isinstance(module, TransformedLinear) else None


def transformed(module: nn.Module, activations: Tensor) -> Tensor:
    """Give a linear's input (..., inputs) after its transform, not rounded."""
    transform = transform_of(module)
    return activations if transform is None else transform(activations)
