"""What every other part knows of a model: logits, blocks, and which linears share an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dllm_sweep.models.family import LinearGroup, Message, ModelFamily, Special
from dllm_sweep.models.tokenizer import chat_ids

__all__ = ["DiffusionModel", "LinearGroup", "ModelFamily", "Special"]


class DiffusionModel:
    """A masked diffusion language model, hosted in a stock transformers class.

    Attributes:
        name: What the user named.
        host: The transformers model; its blocks are quantized in place.
        family: Its architecture's adapter.
        tokenizer: A transformers tokenizer.
        special: Mask, end and padding ids.
        max_length: Longest sequence in tokens.
        block_size: Tokens in a block of block-causal attention; None if attention is full.
        quantization_report: What `dllm_sweep.quantize` did to it; None in full precision.
    """

    def __init__(
        self,
        *,
        name: str,
        host: nn.Module,
        family: ModelFamily,
        tokenizer: Any,
        special: Special,
        max_length: int,
        block_size: int | None = None,
    ) -> None:
        self.name, self.host, self.family = name, host, family
        self.tokenizer, self.special, self.max_length = tokenizer, special, max_length
        self.block_size = block_size
        self.quantization_report: Any = None

    @property
    def device(self) -> torch.device:
        """Where the inputs go."""
        return self.host.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.host.get_input_embeddings().weight.dtype

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, in depth order."""
        return self.host.model.layers

    def block_name(self, index: int) -> str:
        """Full name of block `index`, the prefix of its linears' names."""
        return f"model.layers.{index}"

    def linears(self) -> dict[str, nn.Module]:
        """All linears that may be quantized by full name, in depth order: never embeddings,
        norms or the output head."""
        return {
            f"{self.block_name(index)}.{name}": block.get_submodule(name)
            for index, block in enumerate(self.blocks)
            for group in self.family.linear_groups
            for name in group.linears
        }

    def chat_prompt(self, conversation: str | Sequence[Message]) -> list[int]:
        """Give the token ids of a conversation, up to where the answer starts.

        Args:
            conversation: What the user says, or turns with `role` and `content`.

        Raises:
            InputError: If the checkpoint has no tokenizer.
        """
        return chat_ids(self.tokenizer, self.family, conversation)

    @torch.inference_mode()
    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Predict every position from the whole sequence.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None if there is no padding.

        Returns:
            (B, L, V) in the model's dtype; row i predicts position i in every family.
        """
        out = self.host(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        if self.family.logit_shift == 0:
            return out.logits
        return torch.cat((out.logits[:, :1], out.logits[:, :-1]), dim=1)

    @torch.inference_mode()
    def logits_at(
        self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Predict some positions of each row, from the whole sequence.

        Args:
            input_ids: (B, L) int64.
            positions: (B, W) int64, which positions of each row are predicted; any may repeat.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None if there is no padding.

        Returns:
            (B, W, V) in the model's dtype: `logits` at `positions`.
        """
        index = positions[..., None].expand(-1, -1, self.host.config.vocab_size)
        return self.logits(input_ids, attention_mask).gather(1, index)
