"""Queries, keys and values rounded inside attention, after the rotary embedding.

The rounding happens where transformers' blocks hand their operands to the attention kernel, so it
holds on every path through a model, with keys and values kept between passes, too. Every token of
every head has a grid of its own, unless the heads of a token are to share one. Probabilities are
not rounded.
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
from dllm_sweep.records import ModuleRow
from dllm_sweep.spec import FULL_PRECISION_BITS, QuantScheme

IMPLEMENTATION = "dllm_sweep_rounded_operands"
GRIDS = ("head", "token")
"""What has a grid of its own: each head of a token, or all heads of a token together."""
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
        query_clip_ratio: The same for queries alone; None is `clip_ratio`.
        value_clip_ratio: The same for values alone; None is `clip_ratio`.
        rotate: Whether queries and keys pass a Hadamard transform first: it keeps their products
            and spreads the outliers of keys.
        grids: One of `GRIDS`.
    """

    query_bits: int = FULL_PRECISION_BITS
    key_bits: int = FULL_PRECISION_BITS
    value_bits: int = FULL_PRECISION_BITS
    symmetric: bool = False
    clip_ratio: float = 1.0
    query_clip_ratio: float | None = None
    value_clip_ratio: float | None = None
    rotate: bool = False
    grids: str = "head"


def operand_bits(scheme: QuantScheme) -> tuple[int, int]:
    """Give the bits of queries, and of keys and values, that a scheme asks for."""
    queries = scheme.a_bits if scheme.qkv else FULL_PRECISION_BITS
    return queries, min(scheme.kv_bits, queries)


def round_operands(
    model: DiffusionModel,
    scheme: QuantScheme,
    *,
    symmetric: bool = False,
    clip_ratio: float = 1.0,
    query_clip_ratio: float | None = None,
    value_clip_ratio: float | None = None,
    rotate: bool = False,
    grids: str = "head",
) -> tuple[ModuleRow, ...]:
    """Round what a scheme's `-kv` and `-qkv` ask for in all blocks of a model from now on.

    Args:
        model: Changed in place; not at all where the scheme leaves the operands alone.
        scheme: Its bit-widths.
        symmetric: As in `OperandQuantization`, like all that follow.
        clip_ratio: Of all operands but those that have one of their own.
        query_clip_ratio: Of queries.
        value_clip_ratio: Of values.
        rotate: Whether queries and keys are rotated first.
        grids: One of `GRIDS`.

    Returns:
        A row for each kind of operand and block that is rounded, for the method's report.

    Raises:
        QuantizationError: If heads are to be rotated and there is no Hadamard matrix of their size.
    """
    queries, others = operand_bits(scheme)
    if others == FULL_PRECISION_BITS:
        return ()
    operands = OperandQuantization(
        query_bits=queries,
        key_bits=others,
        value_bits=others,
        symmetric=symmetric,
        clip_ratio=clip_ratio,
        query_clip_ratio=query_clip_ratio,
        value_clip_ratio=value_clip_ratio,
        rotate=rotate,
        grids=grids,
    )
    quantize_operands(model, dict.fromkeys(range(len(model.blocks)), operands))
    return _rows(model, operands)


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


def rounded(
    operands: Tensor, bits: int, settings: OperandQuantization, clip_ratio: float | None = None
) -> Tensor:
    """Round queries, keys or values of some tokens dynamically.

    Args:
        operands: (B, H, N, D).
        bits: 2 to 8; 16 leaves them as they are.
        settings: The family of grids, and what has one of its own.
        clip_ratio: Share of a range that its grid spans; None is that of `settings`.

    Returns:
        (B, H, N, D) in the dtype of `operands`.
    """
    if bits == FULL_PRECISION_BITS:
        return operands
    heads = operands.shape[1]
    vectors = operands if settings.grids == "head" else operands.transpose(1, 2).flatten(2)
    vectors = fake_quantize_tokens(
        vectors,
        bits=bits,
        symmetric=settings.symmetric,
        clip_ratio=settings.clip_ratio if clip_ratio is None else clip_ratio,
    )
    if settings.grids == "head":
        return vectors
    return vectors.unflatten(2, (heads, -1)).transpose(1, 2)


def _rows(model: DiffusionModel, operands: OperandQuantization) -> tuple[ModuleRow, ...]:
    bits = {
        "queries": operands.query_bits,
        "keys": operands.key_bits,
        "values": operands.value_bits,
    }
    return tuple(
        ModuleRow(
            module=f"{model.block_name(index)}.self_attn.{name}",
            w_bits=FULL_PRECISION_BITS,
            a_bits=width,
            group_size=None,
            symmetric=operands.symmetric,
            weights=0,
            bits=0.0,
            relative_error=0.0,
        )
        for index in range(len(model.blocks))
        for name, width in bits.items()
        if width < FULL_PRECISION_BITS
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
    query = rounded(query, operands.query_bits, operands, operands.query_clip_ratio).to(dtype)
    key = rounded(key, operands.key_bits, operands).to(dtype)
    return query, key, rounded(value, operands.value_bits, operands, operands.value_clip_ratio)
