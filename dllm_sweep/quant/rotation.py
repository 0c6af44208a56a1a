"""QuaRot's rotations (arXiv 2404.00456), fused into a model's weights where that is possible.

With norms whose weight is one, a model computes the same function on hidden states h Q for any
orthogonal Q: embeddings and the linears that write to the residual stream rotate their outputs,
the linears that read it and the head expect rotated inputs. Epsilons stay the model's own, and the
embeddings keep their mean: subtracting it is exact for LayerNorm, not for RMSNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.fuse import (
    fold_inputs,
    fuse_norm,
    rewrite,
    transform_online,
    transform_outputs,
    untie,
)
from dllm_sweep.quant.transforms import BlockRotation, Chain, Hadamard, InputTransform, Scaling

ROWS = 8192
"""Rows of the embeddings or the head that are rotated at once."""


def random_hadamard(size: int, generator: torch.Generator) -> InputTransform:
    """Make x -> x D H^T / sqrt(n) with random signs D (n,), drawn on the CPU.

    Raises:
        QuantizationError: If there is no Hadamard matrix of this order.
    """
    signs = torch.randint(2, (size,), generator=generator) * 2.0 - 1.0
    return Chain((Scaling(signs), Hadamard(size)))


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix (n, n) float64 from the uniform (Haar) law, on the CPU."""
    gauss = torch.randn(size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gauss)
    return q * r.diagonal().sign()


def head_hadamard(head_dim: int) -> BlockRotation:
    """Make the Hadamard transform of every attention head's channels on their own.

    Raises:
        QuantizationError: If there is no Hadamard matrix of this order.
    """
    identity = torch.eye(head_dim, dtype=torch.float64)
    return BlockRotation(Hadamard(head_dim)(identity))


@torch.no_grad()
def rotate_ends(
    model: DiffusionModel, transform: InputTransform, device: torch.device | None = None
) -> None:
    """Rotate what writes to the residual stream first, and what reads it last.

    The final norm's weight moves into the head; a head that shares the embeddings' weight gets
    one of its own. The blocks must be rotated, too: `rotate_block`.

    Args:
        model: In full precision, changed in place; no tensor of its own is.
        transform: Orthogonal, on hidden states (..., d).
        device: Where it is computed, some rows at a time; None is where the weights are.
    """
    host = model.host
    untie(host)
    embeddings, head = host.get_input_embeddings(), host.get_output_embeddings()
    norm = host.model.norm
    place = embeddings.weight.device if device is None else device
    transform.to(place)
    gain = norm.weight.detach().to(place).double()
    _rewrite_rows(embeddings, place, transform)
    _rewrite_rows(head, place, lambda rows: transform.fold(rows * gain))
    rewrite(norm, "weight", torch.ones_like(norm.weight))


@torch.no_grad()
def rotate_block(model: DiffusionModel, index: int, transform: InputTransform) -> None:
    """Make a block read and write a rotated residual stream.

    Norm weights move into the linears behind them, whether those are quantized or not.

    Args:
        model: In full precision, changed in place; no tensor of its own is.
        index: Of the block.
        transform: Orthogonal, on hidden states (..., d).
    """
    block = model.blocks[index]
    transform.to(block.get_submodule(model.family.linear_groups[0].source).weight.device)
    for group in model.family.linear_groups:
        source = block.get_submodule(group.source)
        linears = [block.get_submodule(name) for name in group.linears]
        if source.weight.ndim == 1:
            fuse_norm(source, linears)
            for linear in linears:
                fold_inputs(linear, transform)
        else:  # what reads another linear writes to the residual stream
            for linear in linears:
                transform_outputs(linear, transform)


@torch.no_grad()
def rotate_values(model: DiffusionModel, index: int) -> None:
    """Mix the channels of each head of the values, and all heads in front of the output projection.

    The part within heads goes into the value projection, its bias included, and commutes with
    the repetition of grouped key-value heads; the part across heads runs at every call.
    """
    block, name = model.blocks[index], f"{model.block_name(index)}.self_attn.o_proj"
    attention = block.self_attn
    within = head_hadamard(attention.head_dim).to(attention.o_proj.weight.device)
    transform_outputs(attention.v_proj, within)
    fold_inputs(attention.o_proj, within)
    heads = attention.o_proj.in_features // attention.head_dim
    transform_online(model.host, name, Hadamard(heads, inner=attention.head_dim))


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Hold a module's parameters in float64 meanwhile, so that they are rounded only once.

    Linears that are replaced meanwhile come back in the type of those before them.
    """
    dtypes = {name: tensor.dtype for name, tensor in _tensors(module)}
    module.double()
    try:
        yield
    finally:
        for name, tensor in _tensors(module):
            tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))


def _rewrite_rows(
    module: nn.Module, device: torch.device, change: Callable[[Tensor], Tensor]
) -> None:
    """Change the rows of a weight in float64, a run at a time: the whole may be 4 GB that way."""
    weight = module.weight.detach()
    new = torch.empty_like(weight)
    for old_rows, new_rows in zip(weight.split(ROWS), new.split(ROWS), strict=True):
        new_rows.copy_(change(old_rows.to(device).double()))
    rewrite(module, "weight", new)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()
