"""iLLaDA (arXiv 2606.25331) in LlamaForCausalLM: Llama's tensor names, grouped queries, tied
embeddings, every position sees every other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dllm_sweep.errors import InputError
from dllm_sweep.models import llama_layout as layout
from dllm_sweep.models.family import LLAMA_GROUPS, Message, Special

MASK_ID = 5
"""`<[MASK]>` of the released tokenizer; their config.json does not name it."""

_BIASES = (
    *(f"self_attn.{one}_proj.bias" for one in "qkvo"),
    *(f"mlp.{one}_proj.bias" for one in ("gate", "up", "down")),
)
_TENSOR = layout.tensor_pattern(*_BIASES)


class ILLaDAFamily:
    """iLLaDA-8B Base and Instruct, and any checkpoint of their layout with RMS norms."""

    name = "illada"
    model_types = ("illada",)
    logit_shift = 0
    attention = "full"
    linear_groups = LLAMA_GROUPS
    sampler = "blockwise"
    estimator = "llada"
    starts_with_bos = False
    turn_end = "<|eot_id|>"
    tokenizer_class = None

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate iLLaDA's config.json into a LlamaConfig with bidirectional attention.

        Raises:
            CheckpointError: If a key is missing or a switch is set that Llama does not compute.
        """
        # With `layer_norm_eps` the authors' code builds another kind of norm.
        layout.check(config, folder, supported={"layer_norm_eps": None})
        from transformers import LlamaConfig

        host = LlamaConfig(
            **layout.host_options(config),
            attention_bias=bool(config.get("attention_bias")),
            mlp_bias=bool(config.get("mlp_bias")),
        )
        host.is_causal = False
        return host

    def tensor_name(self, name: str) -> str | None:
        """Give the name itself, which is Llama's, or None if iLLaDA has no such tensor."""
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
        """There are no blocks."""
        return None

    def chat_text(self, messages: Sequence[Message]) -> str:
        """Refuse: how the authors write a conversation is in their tokenizer alone.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "an iLLaDA checkpoint whose tokenizer has no chat template: add its authors' template"
            " to tokenizer_config.json"
        )


PLUGIN = ILLaDAFamily()
