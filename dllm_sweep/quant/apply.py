"""Which linears are quantized, and putting the quantized ones in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.models.linear_names import matching, unmatched
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear, transform_of
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme


def select(
    linears: Mapping[str, nn.Module], modules: Iterable[str], skip_modules: Iterable[str]
) -> tuple[str, ...]:
    """Choose the linears to quantize by shell patterns over their full names.

    Args:
        linears: All candidates by full name, in depth order.
        modules: A linear is chosen if one of these patterns matches, such as `*.mlp.*`.
        skip_modules: A chosen linear is left out if one of these patterns matches.

    Returns:
        The chosen names, in the order of `linears`.

    Raises:
        QuantizationError: If a pattern matches nothing, or nothing is left, or a chosen linear
            has been quantized before.
    """
    modules, skip_modules = tuple(modules), tuple(skip_modules)
    problem = unmatched(linears, modules, skip_modules)
    if problem is not None:
        raise QuantizationError(problem)
    chosen = matching(linears, modules, skip_modules)
    _refuse_quantized(linears, chosen)
    return chosen


def unsupported(method: str, scheme: QuantScheme, *, operands: bool = False) -> str | None:
    """Say what of `scheme` no weight-and-activation method can do, or None if it can be done.

    Args:
        method: Its name.
        scheme: What is asked for.
        operands: Whether the method rounds the operands of attention, too: whether it calls
            `quant.attention.round_operands`.
    """
    if scheme.kv_bits < FULL_PRECISION_BITS and not operands:
        return f"{method} does not quantize keys and values (kv{scheme.kv_bits})"
    if scheme.qkv and not operands:
        return f"{method} does not quantize queries, keys and values (-qkv)"
    if scheme.qkv and scheme.a_bits == FULL_PRECISION_BITS:
        return f"{scheme}: -qkv takes the bits of the activations, which are not quantized"
    if scheme.qkv and scheme.a_bits < scheme.kv_bits < FULL_PRECISION_BITS:
        return (
            f"{scheme}: -qkv takes keys and values to {scheme.a_bits} bits already; leave out"
            f" -kv{scheme.kv_bits}"
        )
    if scheme.is_full_precision:
        return f"{scheme} quantizes nothing; the full-precision method is fp"
    if scheme.w_bits == FULL_PRECISION_BITS and scheme.group_size is not None:
        return f"{scheme}: a group size needs quantized weights"
    return None


def replace(host: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` where the submodule with the full name `name` is."""
    parent, _, child = name.rpartition(".")
    setattr(host.get_submodule(parent), child, module)


def install(
    host: nn.Module,
    name: str,
    dequantized: Tensor,
    *,
    scheme: QuantScheme,
    symmetric: bool,
    activation: ActivationQuantization,
    bits: int,
    grid: WeightGrid | None = None,
) -> ModuleRow:
    """Put a quantized layer where the linear with the full name `name` is, and record it.

    What the linear does to its input beforehand, its transform, is kept.

    Args:
        host: The model; the old layer's tensors are not changed.
        name: Full name of the linear.
        dequantized: (outputs, inputs), the rounded weight in any floating-point type.
        scheme: Bit-widths and group size.
        symmetric: The weight grid that was used.
        activation: How the input is rounded.
        bits: Total bits of the weights with their scales and zero points.
        grid: What the weight was rounded to; without it a saved model holds this weight in full.

    Raises:
        QuantizationError: If the new weight holds a NaN or an infinity.
    """
    original = host.get_submodule(name)
    weight = dequantized.to(device=original.weight.device, dtype=original.weight.dtype)
    if not bool(torch.isfinite(weight).all()):
        raise QuantizationError(f"{name}: its quantized weight is not finite")
    bias = None if original.bias is None else original.bias.detach()
    grid = None if grid is None else grid.to(weight.device)
    replace(host, name, QuantLinear(weight, bias, activation, transform_of(original), grid))
    return ModuleRow(
        module=name,
        w_bits=scheme.w_bits,
        a_bits=scheme.a_bits,
        group_size=scheme.group_size,
        symmetric=symmetric,
        weights=weight.numel(),
        bits=float(bits),
        relative_error=_relative_error(original.weight.detach().float(), weight.float()),
    )


def _relative_error(before: Tensor, after: Tensor) -> float:
    norm = before.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return float((after - before).norm() / norm)


def _refuse_quantized(linears: Mapping[str, nn.Module], chosen: tuple[str, ...]) -> None:
    for name in chosen:
        if isinstance(linears[name], QuantLinear):
            raise QuantizationError(
                f"{name} is quantized already; load the model again before quantizing it"
            )
