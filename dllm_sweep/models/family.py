"""What a family of models says of itself, readable without torch: planning asks it, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Message = Mapping[str, str]
"""One turn of a conversation: `role` (`system`, `user`, `assistant`) and `content`."""


@dataclass(frozen=True, kw_only=True)
class LinearGroup:
    """Linears of one block that share their input; names are relative to the block.

    Attributes:
        source: The norm or linear whose output they read, such as `input_layernorm`.
        linears: Names such as `self_attn.q_proj`.
    """

    source: str
    linears: tuple[str, ...]


LLAMA_GROUPS = (
    LinearGroup(
        source="input_layernorm",
        linears=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    LinearGroup(source="self_attn.v_proj", linears=("self_attn.o_proj",)),
    LinearGroup(source="post_attention_layernorm", linears=("mlp.gate_proj", "mlp.up_proj")),
    LinearGroup(source="mlp.up_proj", linears=("mlp.down_proj",)),
)
"""The linears of a block of transformers' Llama, Qwen2 and Qwen3 classes."""


@dataclass(frozen=True, kw_only=True)
class Widths:
    """The sizes that planning knows of a model, in channels.

    Attributes:
        hidden: Of a hidden state.
        ffn: Inputs of the down projection.
        heads: Number of query heads.
        head: Of one head.
    """

    hidden: int
    ffn: int
    heads: int
    head: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> Widths:
        """Read them from config.json, in LLaDA's keys or those of all others.

        Raises:
            KeyError: If it does not say.
        """
        if "d_model" in config:
            hidden, heads = config["d_model"], config["n_heads"]
            ffn = config.get("mlp_hidden_size") or int(config["mlp_ratio"] * hidden)
        else:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            ffn = config["intermediate_size"]
        head = config.get("head_dim") or hidden // heads
        return cls(hidden=hidden, ffn=ffn, heads=heads, head=head)


@dataclass(frozen=True, kw_only=True)
class Special:
    """Token ids that have a meaning, explicit in every family, never guessed.

    Attributes:
        mask_id: The mask.
        end_ids: What ends a text; the first one pads answers.
        pad_id: Padding of a batch.
        bos_id: The tokenizer's begin-of-text; None if it has none.
        turn_end_id: What ends a turn of a conversation; None if the tokenizer has no such token.
    """

    mask_id: int
    end_ids: tuple[int, ...]
    pad_id: int
    bos_id: int | None = None
    turn_end_id: int | None = None


class ModelFamily(Protocol):
    """How checkpoints of one architecture are hosted in a stock transformers class."""

    name: str
    model_types: tuple[str, ...]
    """Values of `model_type` in config.json that this family loads."""
    logit_shift: int
    """1 if the prediction for position i is read at position i - 1, else 0."""
    attention: str
    """`full`: every position sees every other; `block_causal`: its own and earlier blocks."""
    linear_groups: tuple[LinearGroup, ...]
    """In the order of the forward pass."""
    sampler: str
    """The sampler its authors use, as in `DecodingSpec.sampler`."""
    estimator: str
    """The Monte-Carlo likelihood its authors use, as in `TaskSpec.estimator`."""
    starts_with_bos: bool
    """Whether the authors put begin-of-text before every prompt."""
    turn_end: str
    """The token that ends a turn of a conversation."""
    tokenizer_class: str | None
    """The transformers class that reads vocabulary and merges where the checkpoint names a class
    of its own; None if that cannot be."""

    def build_config(self, config: Mapping[str, Any], folder: Path) -> Any:
        """Translate the checkpoint's config.json into a transformers configuration."""

    def tensor_name(self, name: str) -> str | None:
        """Translate a checkpoint's tensor name into the host class's; None if unknown."""

    def checkpoint_name(self, name: str) -> str:
        """Translate a tensor name of the host class back into the checkpoint's."""

    def special(self, config: Mapping[str, Any]) -> Special:
        """Read the special ids from the checkpoint's config.json."""

    def max_length(self, config: Mapping[str, Any]) -> int:
        """Give the longest usable sequence in tokens."""

    def block_size(self, config: Mapping[str, Any]) -> int | None:
        """Give the tokens in a block of block-causal attention; None if attention is full."""

    def chat_text(self, messages: Sequence[Message]) -> str:
        """Write a conversation up to where the answer starts, with begin-of-text if it has one.

        It is read where the checkpoint's tokenizer has no template of its own.
        """


def chat_ml(messages: Sequence[Message], system: str | None = None) -> str:
    """Write a conversation in ChatML, up to where the answer starts.

    Args:
        messages: The turns.
        system: What is said first if no turn of the system does; None is nothing.
    """
    turns = [dict(message) for message in messages]
    if system is not None and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": system})
    body = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    return f"{body}<|im_start|>assistant\n"


def end_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Read `eos_token_id`, a number or a list of them."""
    end = config["eos_token_id"]
    return tuple(end) if isinstance(end, list) else (end,)
