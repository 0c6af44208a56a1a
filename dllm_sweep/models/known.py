"""Published checkpoints by hub id, so that planning works for them before anything is downloaded.

The sizes are those of their config.json. Whatever a checkpoint's own files say goes before this
table, which only fills in what they lack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dllm_sweep.models.family import Widths


@dataclass(frozen=True, kw_only=True)
class Published:
    """The architecture of a released checkpoint.

    Attributes:
        family: Name of its family.
        layers: Transformer blocks.
        width: Hidden size.
        ffn: Inputs of the down-projection.
        heads: Query heads.
        key_value_heads: Heads of keys and values.
        vocabulary: Rows of the embedding.
        max_length: Longest usable sequence in tokens.
        head_size: Channels of a head.
        tied: Whether the output head is the embedding.
        qkv_bias: Whether queries, keys and values have biases.
        head_norms: Whether queries and keys are normalized by head.
        mask_id: The mask; written here where config.json may lack it.
        block_size: Tokens in a block of block-causal attention; None if attention is full.
    """

    family: str
    layers: int
    width: int
    ffn: int
    heads: int
    key_value_heads: int
    vocabulary: int
    max_length: int
    mask_id: int
    head_size: int = 128
    tied: bool = False
    qkv_bias: bool = False
    head_norms: bool = False
    block_size: int | None = None

    @property
    def linear_parameters(self) -> int:
        """Weights of all linears that may be quantized."""
        return self.layers * sum(rows * columns for rows, columns in self._linears())

    @property
    def parameters(self) -> int:
        """All weights: linears, biases, norms, embedding and head."""
        wide, narrow = self.heads * self.head_size, self.key_value_heads * self.head_size
        biases = wide + 2 * narrow if self.qkv_bias else 0
        norms = 2 * self.width + (2 * self.head_size if self.head_norms else 0)
        tables = (1 if self.tied else 2) * self.vocabulary * self.width
        return self.linear_parameters + self.layers * (biases + norms) + tables + self.width

    @property
    def input_sizes(self) -> tuple[int, ...]:
        """Numbers of inputs of the linears, sorted: what a group size has to divide."""
        return tuple(sorted({columns for _, columns in self._linears()}))

    @property
    def widths(self) -> Widths:
        """Sizes of its layers."""
        return Widths(hidden=self.width, ffn=self.ffn, heads=self.heads, head=self.head_size)

    def _linears(self) -> tuple[tuple[int, int], ...]:
        wide, narrow = self.heads * self.head_size, self.key_value_heads * self.head_size
        return (
            (wide, self.width),
            (narrow, self.width),
            (narrow, self.width),
            (self.width, wide),
            (self.ffn, self.width),
            (self.ffn, self.width),
            (self.width, self.ffn),
        )


_LLADA_8B = Published(
    family="llada",
    layers=32,
    width=4096,
    ffn=12288,
    heads=32,
    key_value_heads=32,
    vocabulary=126464,
    max_length=4096,
    mask_id=126336,
)
_ILLADA_8B = Published(
    family="illada",
    layers=32,
    width=4096,
    ffn=14336,
    heads=32,
    key_value_heads=8,
    vocabulary=155136,
    max_length=8192,
    mask_id=5,
    tied=True,
)
_DREAM_7B = Published(
    family="dream",
    layers=28,
    width=3584,
    ffn=18944,
    heads=28,
    key_value_heads=4,
    vocabulary=152064,
    max_length=2048,
    mask_id=151666,
    qkv_bias=True,
)
_SDAR_2B = Published(
    family="sdar",
    layers=28,
    width=2048,
    ffn=6144,
    heads=16,
    key_value_heads=8,
    vocabulary=151936,
    max_length=32768,
    mask_id=151669,
    head_norms=True,
    block_size=4,
)
_SDAR_4B = replace(_SDAR_2B, layers=36, width=2560, ffn=9728, heads=32)
_SDAR_8B = replace(_SDAR_4B, width=4096, ffn=12288)

_SDAR = {"1.7B": _SDAR_2B, "4B": _SDAR_4B, "8B": _SDAR_8B}
_BLOCKS = {"": 4, "-b8": 8, "-b16": 16, "-b32": 32, "-b64": 64}

PUBLISHED: Mapping[str, Published] = {
    "GSAI-ML/LLaDA-8B-Base": _LLADA_8B,
    "GSAI-ML/LLaDA-8B-Instruct": _LLADA_8B,
    "GSAI-ML/LLaDA-1.5": _LLADA_8B,
    "GSAI-ML/iLLaDA-8B-Base": _ILLADA_8B,
    "GSAI-ML/iLLaDA-8B-Instruct": _ILLADA_8B,
    "Dream-org/Dream-v0-Base-7B": _DREAM_7B,
    "Dream-org/Dream-v0-Instruct-7B": _DREAM_7B,
    "Dream-org/Dream-Coder-v0-Base-7B": _DREAM_7B,
    "Dream-org/Dream-Coder-v0-Instruct-7B": _DREAM_7B,
    "apple/DiffuCoder-7B-Base": _DREAM_7B,
    "apple/DiffuCoder-7B-Instruct": _DREAM_7B,
    "apple/DiffuCoder-7B-cpGRPO": _DREAM_7B,
    **{
        f"JetLM/SDAR-{size}-Chat{suffix}": replace(model, block_size=block)
        for size, model in _SDAR.items()
        for suffix, block in _BLOCKS.items()
    },
    "Gen-Verse/TraDo-4B-Instruct": _SDAR_4B,
    "Gen-Verse/TraDo-8B-Instruct": _SDAR_8B,
}
"""Hub id -> its architecture."""

_FUSED = (
    "transformers keeps the experts of its mixture-of-experts classes in fused tensors, whose"
    " linears no method here can quantize"
)
_ROUTED = "no stock transformers class computes its grouped routing between experts"
UNSUPPORTED: Mapping[str, str] = {
    "LLaDAMoEModelLM": _FUSED,
    "LLaDAMoEModel": _FUSED,
    "SDARMoeForCausalLM": _FUSED,
    "LLaDA2MoeModelLM": _ROUTED,
}
"""Class in config.json's `architectures` -> why models of this class are not loaded."""

UNSUPPORTED_IDS: Mapping[str, str] = {
    "inclusionAI/LLaDA-MoE-7B-A1B-Base": "LLaDAMoEModelLM",
    "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": "LLaDAMoEModelLM",
    "inclusionAI/LLaDA2.0-mini": "LLaDA2MoeModelLM",
    "inclusionAI/LLaDA2.0-flash": "LLaDA2MoeModelLM",
    "inclusionAI/LLaDA2.1-mini": "LLaDA2MoeModelLM",
    "inclusionAI/LLaDA2.1-flash": "LLaDA2MoeModelLM",
    "JetLM/SDAR-30B-A3B-Chat": "SDARMoeForCausalLM",
    "JetLM/SDAR-30B-A3B-Sci": "SDARMoeForCausalLM",
}
"""Hub id -> its class in `UNSUPPORTED`."""


def published(name: str) -> Published | None:
    """Look a model up by its hub id, with or without `@revision`; None if it is not known."""
    return PUBLISHED.get(name.partition("@")[0])


def refusal(name: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Say why a model is not loaded, in one line; None if nothing is known against it.

    Args:
        name: Its hub id or folder.
        config: What its config.json says; None if it is not at hand.
    """
    classes = [UNSUPPORTED_IDS.get(name.partition("@")[0])]
    if config is not None:
        classes = list(config.get("architectures") or ())
        # Some mixtures of experts call themselves by the name of a dense architecture.
        classes += ["LLaDAMoEModelLM"] if config.get("num_experts") else []
    found = next((one for one in classes if one in UNSUPPORTED), None)
    return None if found is None else f"{name!r} ({found}) is not supported: {UNSUPPORTED[found]}"


def completed(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Add to config.json what a released one lacks: the mask id and the block size."""
    known = published(name)
    if known is None:
        return dict(config)
    facts = {"mask_token_id": known.mask_id, "block_size": known.block_size}
    lacking = {key: value for key, value in facts.items() if config.get(key) is None}
    return {**config, **lacking}
