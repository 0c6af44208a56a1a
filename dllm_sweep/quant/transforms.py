"""Changes of basis in front of a linear: the input becomes x T, the weight W T^-T, W x stays.

Each is a value: what it holds is fixed when it is made. It can be applied to activations, folded
into the weight behind it, described in plain JSON with its tensors beside, and restored. Several
linears with a common input may hold the same object.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError, StoreError
from dllm_sweep.quant.hadamard import hadamard_factors, hadamard_matrix

NUMBER_BITS = 16
"""A stored scale or entry of a rotation is a half-precision number."""
INDEX_BITS = 32


class InputTransform(nn.Module):
    """A change of basis of vectors; computed in float32, or float64 for float64 vectors."""

    kind: ClassVar[str]

    def forward(self, x: Tensor) -> Tensor:
        """Give x T for x (..., n), in at least float32."""
        return self.change(x.to(torch.promote_types(x.dtype, torch.float32)))

    def change(self, x: Tensor) -> Tensor:
        """Give x T for x (..., n) float32 or float64."""
        raise NotImplementedError

    def fold(self, weight: Tensor) -> Tensor:
        """Give W T^-T for a weight (m, n): W T where T is orthogonal, as most are."""
        return self(weight)

    def settings(self) -> dict[str, Any]:
        """What is not a tensor of its arguments, as plain JSON values."""
        return {}

    def storage_bits(self) -> int:
        """Bits of what has to be stored to apply it."""
        return sum(NUMBER_BITS * int(tensor.numel()) for tensor in self.state_dict().values())


class Scaling(InputTransform):
    """Divides each channel by its scale; the weight's columns are multiplied by it.

    Args:
        scales: (n,) positive, or signs.
    """

    kind = "scaling"

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.register_buffer("scales", scales)

    def change(self, x: Tensor) -> Tensor:
        """Divide x (..., n) by the scales."""
        return x / self.scales.to(x.dtype)

    def fold(self, weight: Tensor) -> Tensor:
        """Multiply the columns of W (m, n) by the scales, in at least float32."""
        return weight.to(torch.promote_types(weight.dtype, torch.float32)) * self.scales


class Hadamard(InputTransform):
    """An orthonormal Hadamard transform of n = size x inner channels: x (H (x) I)^T / sqrt(size).

    H is the Kronecker product of the matrices of `hadamard_factors(size)`. With `inner` above 1
    it mixes the channels that have the same place in runs of `inner`: across attention heads.

    Args:
        size: Order of H.
        inner: Neighbouring channels that are not mixed with each other.

    Raises:
        QuantizationError: If there is no Hadamard matrix of this order.
    """

    kind = "hadamard"

    def __init__(self, size: int, inner: int = 1) -> None:
        super().__init__()
        self.size, self.inner = size, inner
        self.orders = hadamard_factors(size)
        for order in self.orders:
            self.register_buffer(f"order{order}", hadamard_matrix(order), persistent=False)

    def change(self, x: Tensor) -> Tensor:
        """Mix x (..., n), one factor after the other."""
        shape, outer = x.shape, 1
        for order in self.orders:
            matrix = getattr(self, f"order{order}").to(x.dtype) / math.sqrt(order)
            inner = shape[-1] // (outer * order)
            if inner == 1:  # one large product instead of many by a single column
                x = x.reshape(-1, order) @ matrix.T
            else:
                x = matrix @ x.reshape(-1, outer, order, inner)
            outer *= order
        return x.reshape(shape)

    def settings(self) -> dict[str, Any]:
        """Give its two sizes."""
        return {"size": self.size, "inner": self.inner}


class BlockRotation(InputTransform):
    """Multiplies every run of b channels by the same orthogonal matrix.

    Args:
        matrix: (b, b), orthogonal; b divides the number of channels.
    """

    kind = "block_rotation"

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def change(self, x: Tensor) -> Tensor:
        """Rotate the blocks of x (..., n)."""
        blocks = x.reshape(*x.shape[:-1], -1, len(self.matrix))
        return (blocks @ self.matrix.to(x.dtype)).reshape(x.shape)


class Permutation(InputTransform):
    """Reorders channels.

    Args:
        index: (n,) int64; channel i of the result is channel index[i] of the input.
    """

    kind = "permutation"

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.register_buffer("index", index)

    def change(self, x: Tensor) -> Tensor:
        """Reorder x (..., n)."""
        return x[..., self.index]

    def storage_bits(self) -> int:
        """Bits of the index."""
        return INDEX_BITS * int(self.index.numel())


class Chain(InputTransform):
    """One transform after the other.

    Args:
        parts: In the order in which they are applied to activations.
    """

    kind = "chain"

    def __init__(self, parts: Iterable[InputTransform]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def change(self, x: Tensor) -> Tensor:
        """Apply every part to x (..., n)."""
        for part in self.parts:
            x = part.change(x)
        return x

    def fold(self, weight: Tensor) -> Tensor:
        """Fold every part into W (m, n)."""
        for part in self.parts:
            weight = part.fold(weight)
        return weight

    def storage_bits(self) -> int:
        """Bits of all parts."""
        return sum(part.storage_bits() for part in self.parts)


_KINDS = {part.kind: part for part in (Scaling, Hadamard, BlockRotation, Permutation)}


def describe(transform: InputTransform) -> dict[str, Any]:
    """Give what `restore` needs beside the tensors of `transform.state_dict()`.

    Raises:
        QuantizationError: If it is of a class that `restore` does not know.
    """
    if type(transform) is Chain:
        return {"kind": Chain.kind, "parts": [describe(part) for part in transform.parts]}
    if type(transform) not in _KINDS.values():
        raise QuantizationError(
            f"a {type(transform).__name__} cannot be saved: build it from Scaling, Hadamard,"
            " BlockRotation, Permutation and Chain"
        )
    return {"kind": transform.kind, **transform.settings()}


def restore(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> InputTransform:
    """Make a transform again from its description and its tensors.

    Raises:
        StoreError: If the description is of no known kind.
    """
    settings = dict(description)
    kind = settings.pop("kind", None)
    if kind == Chain.kind:
        parts = enumerate(settings["parts"])
        return Chain(restore(part, _below(tensors, f"parts.{i}.")) for i, part in parts)
    if kind not in _KINDS:
        raise StoreError(f"input transform {kind!r} is not known; was it saved by a later version?")
    return _KINDS[kind](**settings, **tensors)


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
