"""What every other part knows of a model: logits, blocks, and which linears share an input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dllm_sweep.manifest import Recipe
from dllm_sweep.models.cache import KeyValueCache
from dllm_sweep.models.family import LinearGroup, Message, ModelFamily, Special
from dllm_sweep.models.forward import chosen_logits, visible_keys
from dllm_sweep.models.linear_names import block_name, linear_names
from dllm_sweep.models.tokenizer import chat_ids
from dllm_sweep.models.work import Work

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
        work: What it has computed since it was built.
        quantization_report: What `dllm_sweep.quantize` did to it; None in full precision.
        recipe: How `dllm_sweep.quantize` was asked to do it; None in full precision.
        folder: Where the files of its checkpoint are; None if it was built in memory.
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
        folder: Path | None = None,
    ) -> None:
        self.name, self.host, self.family = name, host, family
        self.tokenizer, self.special, self.max_length = tokenizer, special, max_length
        self.block_size, self.folder = block_size, folder
        self.work = Work()
        self.quantization_report: Any = None
        self.recipe: Recipe | None = None

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
        return block_name(index)

    def linears(self) -> dict[str, nn.Module]:
        """All linears that may be quantized by full name, in depth order: never embeddings,
        norms or the output head."""
        names = linear_names(self.family.linear_groups, len(self.blocks))
        return {name: self.host.get_submodule(name) for name in names}

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

        This is the plain computation in the host's own forward pass, the reference of the others.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None if there is no padding.

        Returns:
            (B, L, V) in the model's dtype; row i predicts position i in every family.
        """
        self._count(input_ids, input_ids.numel())
        mask = self.host_mask(input_ids, attention_mask)
        out = self.host(input_ids=input_ids, attention_mask=mask, use_cache=False)
        if self.family.logit_shift == 0:
            return out.logits
        shifted = torch.cat((out.logits[:, :1], out.logits[:, :-1]), dim=1)
        if attention_mask is not None:
            # Before a row's first token there is only padding, whose output means nothing.
            first = (attention_mask.cumsum(1) == 1) & attention_mask.bool()
            shifted[first] = out.logits[first]
        return shifted

    def logits_at(
        self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Predict some positions of each row, from the whole sequence, at less cost.

        Args:
            input_ids: (B, L) int64.
            positions: (B, W) int64, which positions of each row are predicted; any may repeat.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None if there is no padding.

        Returns:
            (B, W, V) in the model's dtype: `logits` at `positions`, up to rounding.
        """
        self._count(input_ids, positions.numel())
        return chosen_logits(self, input_ids, positions, attention_mask)

    def logits_cached(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: KeyValueCache,
        start: int = 0,
    ) -> Tensor:
        """Predict some positions from a part of the sequence and kept keys and values of the rest.

        The part's own keys and values go into the cache. The whole sequence from 0 on fills it.

        Args:
            input_ids: (B, N) int64, the tokens from position `start` on.
            positions: (B, W) int64, absolute, within the part; a shifted model cannot predict
                the part's first position unless `start` is 0.
            attention_mask: (B, L) over the whole sequence, 1 for tokens and 0 for padding; None
                if there is no padding.
            cache: Keys and values of this batch.
            start: Position of the first of `input_ids`.

        Returns:
            (B, W, V) in the model's dtype.

        Raises:
            ValueError: If positions before `start` were never forwarded or a prediction is not
                computed here.
        """
        self._count(input_ids, positions.numel())
        return chosen_logits(self, input_ids, positions, attention_mask, cache=cache, start=start)

    def host_mask(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor | None:
        """Give the attention mask with which the host is called for a whole sequence.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for tokens and 0 for padding; None if there is no padding.

        Returns:
            `attention_mask` itself if attention is full; else (B, 1, L, L) bool, who sees whom.
        """
        if self.block_size is None:
            return attention_mask
        rows, length = input_ids.shape
        every = torch.arange(length, device=input_ids.device)[None]
        seen = visible_keys(every, attention_mask, length=length, block_size=self.block_size)
        return None if seen is None else seen.expand(rows, -1, -1, -1)

    def _count(self, input_ids: Tensor, head_tokens: int) -> None:
        rows, tokens = len(input_ids), input_ids.numel()
        self.work += Work(calls=1, rows=rows, tokens=tokens, head_tokens=head_tokens)
