"""QuaRot's rotations (arXiv 2404.00456), fused into a model's weights where that is possible.

With norms whose weight is one, a model computes the same function on hidden states h Q for any
orthogonal Q: embeddings and the linears that write to the residual stream rotate their outputs,
the linears that read it and the head expect rotated inputs. Epsilons stay the model's own, and the
embeddings keep their mean: subtracting it is exact for LayerNorm, not for RMSNorm.
"""

from __future__ import annotations

from collections.abc import Iterator
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
def rotate_residual(model: DiffusionModel, transform: InputTransform) -> None:
    """Rotate the residual stream of a full-precision model; its function stays the same.

    Norm weights move into the linears behind them, whether those are quantized or not. A head
    that shares the embeddings' weight gets one of its own.

    Args:
        model: Changed in place; no tensor of its own is.
        transform: Orthogonal, on hidden states (..., d).
    """
    host = model.host
    untie(host)
    embeddings, head, norm = (
        host.get_input_embeddings(),
        host.get_output_embeddings(),
        host.model.norm,
    )
    transform.to(embeddings.weight.device)
    with in_float64(embeddings), in_float64(head):
        rewrite(embeddings, "weight", transform(embeddings.weight.detach()))
        fuse_norm(norm, [head])
        fold_inputs(head, transform)
    for index in range(len(model.blocks)):
        _rotate_block(model, index, transform)


def rotate_values(model: DiffusionModel, index: int) -> None:
    """Mix the channels of each head of the values, and all heads in front of the output projection.

    The part within heads goes into the value projection, its bias included, and commutes with
    the repetition of grouped key-value heads; the part across heads runs at every call.
    """
    block, name = model.blocks[index], f"{model.block_name(index)}.self_attn.o_proj"
    attention = block.self_attn
    within = head_hadamard(attention.head_dim).to(attention.o_proj.weight.device)
    with in_float64(attention):
        transform_outputs(attention.v_proj, within)
        fold_inputs(attention.o_proj, within)
    heads = attention.o_proj.in_features // attention.head_dim
    transform_online(model.host, name, Hadamard(heads, inner=attention.head_dim))


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Hold a module's parameters in float64 meanwhile, so that they are rounded only once."""
    dtypes = {name: tensor.dtype for name, tensor in _tensors(module)}
    module.double()
    try:
        yield
    finally:
        for name, tensor in _tensors(module):
            tensor.data = tensor.data.to(dtypes[name])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _rotate_block(model: DiffusionModel, index: int, transform: InputTransform) -> None:
    block = model.blocks[index]
    transform.to(block.get_submodule(model.family.linear_groups[0].source).weight.device)
    with in_float64(block):
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
