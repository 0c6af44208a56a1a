"""SDAR (arXiv 2510.06303) in Qwen3ForCausalLM: a position sees its own block of tokens and all
earlier blocks, so that finished blocks keep their keys and values exactly.

The released models predict position i at position i. TraDo has the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.models import llama_layout as layout
from dllm_sweep.models.family import LLAMA_GROUPS, Message, Special, chat_ml

MASK_ID = 151669
"""`<|MASK|>` of the released tokenizer, unless config.json names another."""

_TENSOR = layout.tensor_pattern("self_attn.q_norm.weight", "self_attn.k_norm.weight")


class SDARFamily:
    """SDAR 1.7B, 4B, 8B in all block sizes, TraDo, and any dense checkpoint of their layout."""

    name = "sdar"
    model_types = ("sdar",)
    logit_shift = 0
    attention = "block_causal"
    linear_groups = LLAMA_GROUPS
    sampler = "blockwise"
    estimator = "llada"
    starts_with_bos = False
    turn_end = "<|im_end|>"
    tokenizer_class = "Qwen2Tokenizer"

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate SDAR's config.json into a Qwen3Config; the mask of blocks is ours.

        Raises:
            CheckpointError: If a key is missing or a switch is set that is not supported.
        """
        only = {"use_sliding_window": False, "attention_bias": False}
        layout.check(config, folder, required=("head_dim", "block_size"), supported=only)
        from transformers import Qwen3Config

        host = Qwen3Config(
            **layout.host_options(config),
            head_dim=config["head_dim"],
            attention_bias=False,
            use_sliding_window=False,
            sliding_window=None,
        )
        host.is_causal = False
        return host

    def tensor_name(self, name: str) -> str | None:
        """Give the name itself, which is Qwen3's, or None if SDAR has no such tensor."""
        return name if _TENSOR.fullmatch(name) else None

    def checkpoint_name(self, name: str) -> str:
        """Give the name itself."""
        return name

    def special(self, config: Mapping[str, Any]) -> Special:
        """Read the end and padding ids; the mask is the released models' unless it is named."""
        named = config.get("mask_token_id")
        return layout.special_ids(config, MASK_ID if named is None else named)

    def max_length(self, config: Mapping[str, Any]) -> int:
        """Give what config.json says."""
        return int(config["max_position_embeddings"])

    def block_size(self, config: Mapping[str, Any]) -> int | None:
        """Give the block size that the checkpoint was trained with."""
        return int(config["block_size"])

    def chat_text(self, messages: Sequence[Message]) -> str:
        """Write a conversation in ChatML, as Qwen3 does."""
        return chat_ml(messages)


PLUGIN = SDARFamily()
