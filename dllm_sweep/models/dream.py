"""Dream (arXiv 2508.15487) in Qwen2ForCausalLM: its own tensor names, every position sees every
other, and the prediction for a position is read one position earlier.

DiffuCoder and Dream-Coder have the same layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.family import LLAMA_GROUPS, Message, Special, chat_ml, end_ids

USABLE_LENGTH = 2048
"""Tokens: config.json says 131072, the authors' notes say that the models were trained on 2048."""

_WEIGHTS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{one}_proj.{part}" for one in "qkv" for part in ("weight", "bias")),
    "self_attn.o_proj.weight",
    *(f"mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
)
_TENSOR = re.compile(
    rf"model\.(embed_tokens|norm)\.weight|lm_head\.weight"
    rf"|model\.layers\.\d+\.({'|'.join(map(re.escape, _WEIGHTS))})"
)
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
    "mask_token_id",
    "eos_token_id",
)
_SUPPORTED: dict[str, Any] = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "use_sliding_window": False,
    "quantization_config": None,
}
"""Switch -> the only value that is loaded; an absent one has it."""


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
    # The checkpoint names a class of its own, whose code is not run; this one gives the same ids.
    tokenizer_class = "Qwen2Tokenizer"

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate Dream's config.json into a Qwen2Config with bidirectional attention.

        Raises:
            CheckpointError: If a key is missing or a switch is set that Qwen2 does not compute.
        """
        _check_supported(config, folder)
        from transformers import Qwen2Config

        host = Qwen2Config(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=config["num_attention_heads"],
            num_key_value_heads=_key_value_heads(config),
            hidden_act="silu",
            max_position_embeddings=config["max_position_embeddings"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            use_sliding_window=False,
            sliding_window=None,
            tie_word_embeddings=config["tie_word_embeddings"],
            use_cache=False,
            bos_token_id=None,
            eos_token_id=config["eos_token_id"],
            pad_token_id=config.get("pad_token_id"),
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
        ends, pad = end_ids(config), config.get("pad_token_id")
        return Special(
            mask_id=config["mask_token_id"], end_ids=ends, pad_id=ends[0] if pad is None else pad
        )

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


def _check_supported(config: Mapping[str, Any], folder: Path) -> None:
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise CheckpointError(f"{folder}/config.json has no {', '.join(missing)}: add it there")
    problems = [
        f"{key} is {value!r}, only {supported!r} is supported"
        for key, supported in _SUPPORTED.items()
        if (value := config.get(key, supported)) != supported
    ]
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        problems.append(f"hidden_size {width} does not divide into num_attention_heads {heads}")
    if heads % _key_value_heads(config):
        problems.append(f"num_attention_heads {heads} does not divide into num_key_value_heads")
    if problems:
        raise CheckpointError(f"{folder}/config.json cannot be loaded: {'; '.join(problems)}")


def _key_value_heads(config: Mapping[str, Any]) -> int:
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])
