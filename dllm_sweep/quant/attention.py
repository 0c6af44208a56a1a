"""Queries, keys and values rounded inside attention, after the rotary embedding.

The rounding happens where transformers' blocks hand their operands to the attention kernel, so it
holds on every path through a model, with keys and values kept between passes, too. Every token of
every head has a grid of its own. Probabilities are not rounded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from dllm_sweep.kernels.fake_quantize_tokens import fake_quantize_tokens
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.quant.transforms import Hadamard
from dllm_sweep.spec import FULL_PRECISION_BITS

IMPLEMENTATION = "dllm_sweep_rounded_operands"
_SETTINGS = "operand_quantization"


@dataclass(frozen=True, kw_only=True)
class OperandQuantization:
    """How the operands of attention are rounded, dynamically for each token and head.

    Attributes:
        query_bits: 2 to 8; 16 leaves queries as they are.
        key_bits: The same for keys.
        value_bits: The same for values.
        symmetric: Whether the grids are symmetric around zero.
        clip_ratio: Share of a range that its grid spans, in (0, 1].
        rotate: Whether queries and keys pass a Hadamard transform first: it keeps their products
            and spreads the outliers of keys.
    """

    query_bits: int = FULL_PRECISION_BITS
    key_bits: int = FULL_PRECISION_BITS
    value_bits: int = FULL_PRECISION_BITS
    symmetric: bool = False
    clip_ratio: float = 1.0
    rotate: bool = False


def quantize_operands(model: DiffusionModel, settings: Mapping[int, OperandQuantization]) -> None:
    """Round the operands of attention in some blocks of a model from now on.

    Args:
        model: Changed in place; its other blocks attend as before.
        settings: By the block's index.

    Raises:
        QuantizationError: If heads are to be rotated and there is no Hadamard matrix of their size.
    """
    _register()
    for index, operands in settings.items():
        attention = model.blocks[index].self_attn
        setattr(attention, _SETTINGS, operands)
        if operands.rotate:
            device = attention.q_proj.weight.device
            attention.operand_rotation = Hadamard(attention.head_dim).to(device)
    if settings:
        model.host.set_attn_implementation(IMPLEMENTATION)


def operand_settings(model: DiffusionModel) -> dict[int, OperandQuantization]:
    """Give what `quantize_operands` has set, by the block's index."""
    found = {i: getattr(b.self_attn, _SETTINGS, None) for i, b in enumerate(model.blocks)}
    return {index: operands for index, operands in found.items() if operands is not None}


def describe(model: DiffusionModel) -> dict[str, Any]:
    """Give the settings as plain JSON values, for `restore`."""
    found = operand_settings(model)
    return {str(index): dataclasses.asdict(operands) for index, operands in found.items()}


def restore(model: DiffusionModel, description: Mapping[str, Any]) -> None:
    """Set what `describe` gave."""
    settings = {int(index): OperandQuantization(**one) for index, one in description.items()}
    quantize_operands(model, settings)


def rounded(operands: Tensor, bits: int, settings: OperandQuantization) -> Tensor:
    """Round (B, H, N, D), each of the last dimension's vectors to its own grid."""
    if bits == FULL_PRECISION_BITS:
        return operands
    return fake_quantize_tokens(
        operands, bits=bits, symmetric=settings.symmetric, clip_ratio=settings.clip_ratio
    )


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **keywords: Any
    ) -> Any:
        operands = getattr(module, _SETTINGS, None)
        if operands is not None:
            query, key, value = _operands(module, operands, query, key, value)
        return sdpa_attention_forward(module, query, key, value, *rest, **keywords)

    AttentionInterface.register(IMPLEMENTATION, attend)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _operands(
    module: nn.Module, operands: OperandQuantization, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = query.dtype
    if operands.rotate:
        query, key = module.operand_rotation(query), module.operand_rotation(key)
    query = rounded(query, operands.query_bits, operands).to(dtype)
    key = rounded(key, operands.key_bits, operands).to(dtype)
    return query, key, rounded(value, operands.value_bits, operands)
