"""LLaDA (arXiv 2502.09992) in LlamaForCausalLM: renamed tensors, every position sees every other.

Apart from the causal mask the dense LLaDA models are Llama models. A checkpoint whose
configuration asks for anything that Llama does not compute is refused, switch by switch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.family import LLAMA_GROUPS, Message, Special
from dllm_sweep.models.llama_layout import special_ids

_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
# `ff_out` is the name of the output head and of a linear in every block: match whole names only.
_BLOCK = re.compile(
    rf"model\.transformer\.blocks\.(?P<block>\d+)\.(?P<name>{'|'.join(_BLOCK_TENSORS)})\.weight"
)
_OTHER_TENSORS = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}

_SUPPORTED: dict[str, tuple[Any, Any]] = {
    "block_type": ("llama", "sequential"),
    "block_group_size": (1, 1),
    "activation_type": ("silu", "swiglu"),
    "layer_norm_type": ("rms", "default"),
    "layer_norm_with_affine": (True, True),
    "bias_for_layer_norm": (False, None),
    "attention_layer_norm": (False, False),
    "input_emb_norm": (False, False),
    "rope": (True, False),
    "alibi": (False, False),
    "include_bias": (False, True),
    "include_qkv_bias": (False, False),
    "scale_logits": (False, False),
}
"""Switch -> (the value that Llama computes, the value that LLaDA's code takes if it is absent)."""

_REQUIRED = (
    "d_model",
    "n_layers",
    "n_heads",
    "max_sequence_length",
    "rope_theta",
    "weight_tying",
    "mask_token_id",
    "eos_token_id",
)


class LLaDAFamily:
    """LLaDA-8B Base and Instruct, LLaDA-1.5, and any dense checkpoint of their layout."""

    name = "llada"
    model_types = ("llada",)
    logit_shift = 0
    attention = "full"
    linear_groups = LLAMA_GROUPS
    sampler = "blockwise"
    estimator = "llada"
    starts_with_bos = False
    turn_end = "<|eot_id|>"
    tokenizer_class = None

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate LLaDA's config.json into a LlamaConfig with bidirectional attention.

        Raises:
            CheckpointError: If a key is missing or a switch is set that Llama does not compute.
        """
        _check_supported(config, folder)
        from transformers import LlamaConfig

        width, heads = config["d_model"], config["n_heads"]
        host = LlamaConfig(
            vocab_size=_vocabulary_size(config, folder),
            hidden_size=width,
            intermediate_size=config.get("mlp_hidden_size") or int(config["mlp_ratio"] * width),
            num_hidden_layers=config["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=_key_value_heads(config),
            hidden_act="silu",
            max_position_embeddings=config["max_sequence_length"],
            rms_norm_eps=config.get("rms_norm_eps") or 1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attention_bias=False,
            mlp_bias=False,
            tie_word_embeddings=config["weight_tying"],
            use_cache=False,
            bos_token_id=None,
            eos_token_id=config["eos_token_id"],
            pad_token_id=config.get("pad_token_id"),
        )
        host.is_causal = False
        return host

    def tensor_name(self, name: str) -> str | None:
        """Translate a tensor's name, such as `model.transformer.blocks.0.ff_out.weight`."""
        match = _BLOCK.fullmatch(name)
        if match is None:
            return _OTHER_TENSORS.get(name)
        return f"model.layers.{int(match['block'])}.{_BLOCK_TENSORS[match['name']]}.weight"

    def checkpoint_name(self, name: str) -> str:
        """Translate the other way, such as `model.layers.0.mlp.down_proj.weight`."""
        for public, host in _OTHER_TENSORS.items():
            if host == name:
                return public
        _, _, block, tensor = name.removesuffix(".weight").split(".", 3)
        (public,) = (key for key, value in _BLOCK_TENSORS.items() if value == tensor)
        return f"model.transformer.blocks.{block}.{public}.weight"

    def special(self, config: Mapping[str, Any]) -> Special:
        """Read the mask, end and padding ids; LLaDA pads with its end token."""
        return special_ids(config, config["mask_token_id"])

    def max_length(self, config: Mapping[str, Any]) -> int:
        """Give what config.json says."""
        return int(config["max_sequence_length"])

    def block_size(self, config: Mapping[str, Any]) -> int | None:
        """There are no blocks."""
        return None

    def chat_text(self, messages: Sequence[Message]) -> str:
        """Write a conversation with a header before each turn, as Llama 3 does."""
        turns = [(message["role"], message["content"].strip()) for message in messages]
        body = "".join(f"{_header(role)}{content}<|eot_id|>" for role, content in turns)
        return f"<|startoftext|>{body}{_header('assistant')}"


PLUGIN = LLaDAFamily()


def _header(role: str) -> str:
    return f"<|start_header_id|>{role}<|end_header_id|>\n\n"


def _check_supported(config: Mapping[str, Any], folder: Path) -> None:
    missing = [key for key in _REQUIRED if config.get(key) in (None, [])]
    if not config.get("mlp_hidden_size") and not config.get("mlp_ratio"):
        missing.append("mlp_hidden_size")
    if missing:
        raise CheckpointError(f"{folder}/config.json has no {', '.join(missing)}: add it there")
    problems = [
        f"{key} is {value!r}, only {supported!r} is supported"
        for key, (supported, absent) in _SUPPORTED.items()
        if (value := config.get(key, absent)) != supported
        and not (value is None and supported is False)
    ]
    if config.get("quantization_config"):
        problems.append("it is already quantized (quantization_config)")
    if config["d_model"] % config["n_heads"]:
        problems.append(f"d_model {config['d_model']} does not divide into n_heads")
    if config["n_heads"] % _key_value_heads(config):
        problems.append(f"n_heads {config['n_heads']} does not divide into n_kv_heads")
    if problems:
        raise CheckpointError(f"{folder}/config.json cannot be loaded: {'; '.join(problems)}")


def _key_value_heads(config: Mapping[str, Any]) -> int:
    if config.get("n_kv_heads"):
        return int(config["n_kv_heads"])
    return 1 if config.get("multi_query_attention") else int(config["n_heads"])


def _vocabulary_size(config: Mapping[str, Any], folder: Path) -> int:
    # The matrix may have more rows than the tokenizer has tokens: its size counts.
    size = config.get("embedding_size") or config.get("vocab_size")
    if not size:
        raise CheckpointError(f"{folder}/config.json has no embedding_size: add it there")
    return int(size)
