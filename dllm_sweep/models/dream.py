"""Dream (arXiv 2508.15487) in Qwen2ForCausalLM: its own tensor names, every position sees every
other, and the prediction for a position is read one position earlier.

DiffuCoder and Dream-Coder have the same layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.models import llama_layout as layout
from dllm_sweep.models.family import LLAMA_GROUPS, Message, Special, chat_ml

USABLE_LENGTH = 2048
"""Tokens: config.json says 131072, the authors' notes say that the models were trained on 2048."""

_TENSOR = layout.tensor_pattern(*(f"self_attn.{one}_proj.bias" for one in "qkv"))


class DreamFamily:
    """Dream-v0 Base and Instruct, DiffuCoder, Dream-Coder, and any checkpoint of their layout."""

    name = "dream"
    model_types = ("Dream",)
    logit_shift = 1
    attention = "full"
    linear_groups = LLAMA_GROUPS
    sampler = "timeline"
    estimator = "dream"
    starts_with_bos = True
    turn_end = "<|im_end|>"
    # The released checkpoints name a class of their own; this one gives the same ids.
    tokenizer_class = "Qwen2Tokenizer"

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate Dream's config.json into a Qwen2Config with bidirectional attention.

        Raises:
            CheckpointError: If a key is missing or a switch is set that Qwen2 does not compute.
        """
        only = {"use_sliding_window": False}
        layout.check(config, folder, required=("mask_token_id",), supported=only)
        from transformers import Qwen2Config

        host = Qwen2Config(
            **layout.host_options(config), use_sliding_window=False, sliding_window=None
        )
        host.is_causal = False
        return host

    def tensor_name(self, name: str) -> str | None:
        """Give the name itself, which is Qwen2's, or None if Dream has no such tensor."""
        return name if _TENSOR.fullmatch(name) else None

    def checkpoint_name(self, name: str) -> str:
        """Give the name itself."""
        return name

    def special(self, config: Mapping[str, Any]) -> Special:
        """Read the mask, end and padding ids; Dream pads with its end token."""
        return layout.special_ids(config, config["mask_token_id"])

    def max_length(self, config: Mapping[str, Any]) -> int:
        """Give what config.json says, and at most what the models were trained on."""
        return min(int(config["max_position_embeddings"]), USABLE_LENGTH)

    def block_size(self, config: Mapping[str, Any]) -> int | None:
        """There are no blocks."""
        return None

    def chat_text(self, messages: Sequence[Message]) -> str:
        """Write a conversation in ChatML, with the authors' system message if none is given."""
        return chat_ml(messages, system="You are a helpful assistant.")


PLUGIN = DreamFamily()
