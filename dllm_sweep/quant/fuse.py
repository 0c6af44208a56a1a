"""Moving scales and rotations into the weights on both sides of them, without changing a function.

No tensor is changed in place. What replaces one is a `RewrittenParameter`, so that the whole of
what a method changed can be saved.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.linear import TransformedLinear, transform_of
from dllm_sweep.quant.transforms import Chain, InputTransform


class RewrittenParameter(nn.Parameter):
    """A parameter outside the quantized linears that a method has given new values."""


def rewrite(module: nn.Module, name: str, values: Tensor) -> None:
    """Put new values, in the old ones' dtype and place, where the tensor `name` of `module` is.

    Raises:
        QuantizationError: If a value does not fit the dtype, or is not finite.
    """
    old = getattr(module, name)
    new = values.to(device=old.device, dtype=old.dtype).contiguous()
    if not bool(torch.isfinite(new).all()):
        raise QuantizationError(
            f"a fused {name} is not finite in {old.dtype}; load the model in bfloat16 or float32"
        )
    if isinstance(old, nn.Parameter):
        setattr(module, name, RewrittenParameter(new, requires_grad=False))
    else:
        module.register_buffer(name, new)


def takes_output_scales(source: nn.Module, channels: int) -> bool:
    """Say whether scales of `channels` channels can be divided out of what `source` gives.

    A norm always can. A linear can if its outputs are these channels, one for one: the value
    projection under grouped queries has fewer than the output projection reads.
    """
    return len(source.weight) == channels


def divide_outputs(source: nn.Module, scales: Tensor) -> None:
    """Divide the outputs of a norm or linear by `scales` (n,), its bias with them."""
    weight = source.weight.detach().double()
    by = scales.to(weight.device).double()
    rewrite(source, "weight", weight / (by if weight.ndim == 1 else by[:, None]))
    if getattr(source, "bias", None) is not None:
        rewrite(source, "bias", source.bias.detach().double() / by)


def multiply_inputs(linears: Iterable[nn.Module], scales: Tensor) -> None:
    """Multiply the columns of each linear by `scales` (n,)."""
    for linear in linears:
        weight = linear.weight.detach().double()
        rewrite(linear, "weight", weight * scales.to(weight.device).double())


def fuse_norm(norm: nn.Module, linears: Sequence[nn.Module]) -> None:
    """Move a norm's weight into the linears that read it; the norm keeps its epsilon."""
    multiply_inputs(linears, norm.weight.detach())
    rewrite(norm, "weight", torch.ones_like(norm.weight))


def fold_inputs(linear: nn.Module, transform: InputTransform) -> None:
    """Make a linear expect transformed inputs; somebody else must transform them."""
    rewrite(linear, "weight", transform.fold(linear.weight.detach().double()))


def transform_outputs(linear: nn.Module, transform: InputTransform) -> None:
    """Make a linear give transformed outputs, its bias included."""
    weight = linear.weight.detach().double()
    rewrite(linear, "weight", transform(weight.T).T)
    if linear.bias is not None:
        rewrite(linear, "bias", transform(linear.bias.detach().double()))


def transform_online(host: nn.Module, name: str, transform: InputTransform) -> None:
    """Transform the input of the linear `name` at every call, and fold that into its weight."""
    linear = host.get_submodule(name)
    transform = transform.to(linear.weight.device)
    weight = transform.fold(linear.weight.detach().double())
    before = transform_of(linear)
    bias = None if linear.bias is None else linear.bias.detach()
    whole = transform if before is None else Chain((before, transform))
    # A copy even in float64: a view would keep what it was computed from as long as the model.
    weight = weight.to(linear.weight.dtype, copy=True)
    replace(host, name, TransformedLinear(weight, bias, whole))


def untie(host: nn.Module) -> None:
    """Give the output head a weight of its own where it shares the embeddings'."""
    head, embeddings = host.get_output_embeddings(), host.get_input_embeddings()
    if head.weight is embeddings.weight:
        rewrite(head, "weight", embeddings.weight.detach().clone())
        host.config.tie_word_embeddings = False
