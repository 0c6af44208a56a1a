"""Forward passes that compute only what is read, with or without kept keys and values.

Two savings change no logit: the output head runs only at the positions asked for, and so do the
queries, the attention output, the feed-forward and the norms of the last block, whose other
positions nobody reads. Keys and values come from all positions in every block. The blocks are the
host's own modules, called as it calls them, so that hooks, quantized linears and attention
functions that were put there act here, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dllm_sweep.models.cache import Given, KeyValueCache, Slots

if TYPE_CHECKING:
    from dllm_sweep.models.base import DiffusionModel

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines, each (1 or B, N, D)."""


@torch.inference_mode()
def chosen_logits(
    model: DiffusionModel,
    input_ids: Tensor,
    positions: Tensor,
    shown: Tensor | None,
    *,
    cache: KeyValueCache | None = None,
    start: int = 0,
) -> Tensor:
    """Predict some positions of each row.

    Args:
        model: The model.
        input_ids: (B, N) int64, the tokens from position `start` on.
        positions: (B, W) int64, absolute.
        shown: (B, L) over the whole sequence, 1 for tokens and 0 for padding; None if none is.
        cache: Where keys and values of other positions are, and where those of these go.
        start: Position of the first of `input_ids`.

    Returns:
        (B, W, V) in the model's dtype.

    Raises:
        ValueError: If a position is asked for whose output is not computed here.
    """
    body, stop = model.host.model, start + input_ids.shape[1]
    length = stop if cache is None else max(stop, cache.length)
    shown = None if shown is None or bool(shown.all()) else shown[:, :length]
    reading = read_at(model.family.logit_shift, positions, shown, start)
    slots = None if cache is None else Slots(cache, start)

    own = torch.arange(start, stop, device=input_ids.device)[None]
    hidden = body.embed_tokens(input_ids)
    rotary = body.rotary_emb(hidden, position_ids=own)
    mask = visible_keys(own, shown, length=length, block_size=model.block_size)
    for block in body.layers[:-1]:
        hidden = _run(block, hidden, rotary, mask, slots)
    mask = visible_keys(reading, shown, length=length, block_size=model.block_size)
    hidden = _run_last(body.layers[-1], hidden, rotary, mask, slots, reading - start)
    logits: Tensor = model.host.lm_head(body.norm(hidden))
    return logits


def read_at(shift: int, positions: Tensor, shown: Tensor | None = None, start: int = 0) -> Tensor:
    """Give the positions at whose outputs the predictions for `positions` are read.

    The first token of a row of a shifted model has no prediction of its own and is read at itself,
    never at the padding before it: a row's logits do not depend on how it is padded.

    Args:
        shift: The family's.
        positions: (B, W) int64, absolute.
        shown: (B, L), 0 for padding; None if there is none.
        start: First position whose output is computed.

    Raises:
        ValueError: If one of them is before `start`.
    """
    if shift == 0:
        return positions
    reading = (positions - shift).clamp(min=0)
    if shown is not None:
        reading = torch.maximum(reading, (shown.cumsum(1) == 0).sum(1, keepdim=True))
    if start and bool((reading < start).any()):
        raise ValueError(
            f"a prediction is read {shift} position before, and position {start - 1} is not"
            f" forwarded: ask for positions from {start + shift} on"
        )
    return reading


def visible_keys(
    queries: Tensor, shown: Tensor | None, *, length: int, block_size: int | None
) -> Tensor | None:
    """Say which positions each query sees: all tokens, or those of its own and earlier blocks.

    Blocks are counted from each row's first token, so that padding on the left moves none.

    Args:
        queries: (B, Q) or (1, Q) int64, absolute positions.
        shown: (B, length), 0 for padding; None if there is none.
        length: Number of positions.
        block_size: Tokens in a block; None is full attention.

    Returns:
        (B or 1, 1, Q, length) bool, or None if every query sees every position.
    """
    if block_size is None:
        if shown is None:
            return None
        return shown.bool()[:, None, None].expand(-1, -1, queries.shape[1], -1)
    if shown is None:
        numbers = torch.arange(length, device=queries.device)[None]
    else:
        numbers = (shown.cumsum(1) - 1).clamp(min=0)
    blocks = numbers // block_size
    rows = max(len(blocks), len(queries))
    own = blocks.expand(rows, -1).gather(1, queries.expand(rows, -1))
    seen = own[:, :, None] >= blocks[:, None]
    return (seen if shown is None else seen & shown.bool()[:, None])[:, None]


def _run(
    block: nn.Module, hidden: Tensor, rotary: Rotary, mask: Tensor | None, kept: Any
) -> Tensor:
    out: Tensor = block(
        hidden,
        attention_mask=mask,
        position_embeddings=rotary,
        past_key_values=kept,
        is_causal=False,
    )
    return out


def _run_last(
    block: nn.Module,
    hidden: Tensor,
    rotary: Rotary,
    mask: Tensor | None,
    slots: Slots | None,
    reading: Tensor,
) -> Tensor:
    """Run the last block where it is read; `reading` (B, W) counts from the first of `hidden`."""
    device = block.input_layernorm.weight.device
    hidden, reading = hidden.to(device), reading.to(device)
    cos, sin = (one.to(device) for one in rotary)
    keys, values = _keys_values(block.self_attn, block.input_layernorm(hidden), cos, sin)
    if slots is not None:
        keys, values = slots.update(keys, values, block.self_attn.layer_idx)
    chosen = hidden.gather(1, reading[..., None].expand(-1, -1, hidden.shape[2]))
    return _run(block, chosen, (cos[0][reading], sin[0][reading]), mask, Given(keys, values))


def _keys_values(
    attention: nn.Module, states: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute rotated keys and values (B, H, N, D) as transformers' attention does."""
    from transformers.models.llama.modeling_llama import rotate_half

    shape = (*states.shape[:2], -1, attention.head_dim)
    keys, values = attention.k_proj(states).view(shape), attention.v_proj(states).view(shape)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    return keys * cos[:, None] + rotate_half(keys) * sin[:, None], values
