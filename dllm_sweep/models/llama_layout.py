"""What families share whose checkpoints use the tensor names and config keys of Llama and Qwen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.family import Special, end_ids

BLOCK_TENSORS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{one}_proj.weight" for one in "qkvo"),
    *(f"mlp.{one}_proj.weight" for one in ("gate", "up", "down")),
)
"""The tensors of every block, by their names within it."""

SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "eos_token_id",
)
"""Keys of config.json without which nothing is computed."""

PLAIN = {"hidden_act": "silu", "rope_scaling": None, "quantization_config": None}
"""Switches of config.json with the only value that is loaded; an absent one has it."""


def tensor_pattern(*extra: str) -> re.Pattern[str]:
    """Match the names of all tensors of a model whose blocks have `extra` ones, too."""
    inner = "|".join(map(re.escape, (*BLOCK_TENSORS, *extra)))
    return re.compile(
        rf"model\.(embed_tokens|norm)\.weight|lm_head\.weight|model\.layers\.\d+\.({inner})"
    )


def check(
    config: Mapping[str, Any],
    folder: Path,
    *,
    required: Iterable[str] = (),
    supported: Mapping[str, Any] | None = None,
) -> None:
    """Make sure that config.json has what is needed and asks for nothing else.

    Args:
        config: What config.json says.
        folder: Where it is.
        required: Keys that must be there, beside `SIZES`.
        supported: Switches with the only value that is loaded, beside `PLAIN`.

    Raises:
        CheckpointError: Naming every missing key, or every switch that is not supported.
    """
    missing = [key for key in (*SIZES, *required) if config.get(key) in (None, [])]
    if rope_theta(config) is None:
        missing.append("rope_theta")
    if missing:
        raise CheckpointError(f"{folder}/config.json has no {', '.join(missing)}: add it there")
    problems = [
        f"{key} is {value!r}, only {only!r} is supported"
        for key, only in (PLAIN | dict(supported or {})).items()
        if (value := config.get(key, only)) != only
    ]
    kind = (config.get("rope_parameters") or {}).get("rope_type", "default")
    if kind != "default":
        problems.append(f"rope_parameters are {kind!r}, only 'default' is supported")
    problems += _heads(config)
    if problems:
        raise CheckpointError(f"{folder}/config.json cannot be loaded: {'; '.join(problems)}")


def rope_theta(config: Mapping[str, Any]) -> float | None:
    """Give the base of the rotary frequencies, as older or newer transformers write it."""
    newer: float | None = (config.get("rope_parameters") or {}).get("rope_theta")
    older: float | None = config.get("rope_theta")
    return newer if older is None else older


def key_value_heads(config: Mapping[str, Any]) -> int:
    """Give the number of heads of keys and values; absent, it is that of queries."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def host_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Give what the configurations of all host classes take, with nothing left to a default."""
    return {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": key_value_heads(config),
        "hidden_act": "silu",
        "max_position_embeddings": config["max_position_embeddings"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta(config)},
        "tie_word_embeddings": config["tie_word_embeddings"],
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config.get("pad_token_id"),
    }


def special_ids(config: Mapping[str, Any], mask_id: int) -> Special:
    """Read the end and padding ids; padding is the end token where none is given."""
    ends, pad = end_ids(config), config.get("pad_token_id")
    return Special(mask_id=mask_id, end_ids=ends, pad_id=ends[0] if pad is None else pad)


def _heads(config: Mapping[str, Any]) -> list[str]:
    width, heads = config["hidden_size"], config["num_attention_heads"]
    problems = []
    if not config.get("head_dim") and width % heads:
        problems.append(f"hidden_size {width} does not divide into num_attention_heads {heads}")
    if heads % key_value_heads(config):
        problems.append(f"num_attention_heads {heads} does not divide into num_key_value_heads")
    return problems
