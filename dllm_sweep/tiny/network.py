"""The trained network: bidirectional blocks of the Llama shape, in plain torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a network; `qkv_bias` and fewer key heads are for shapes other than LLaDA's."""

    vocabulary: int = 1024
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    key_heads: int = 8
    feed_forward: int = 768
    context: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    qkv_bias: bool = False

    @property
    def head_size(self) -> int:
        """Channels of one head."""
        return self.hidden // self.heads


class Block(nn.Module):
    """Attention and a gated feed-forward layer, each behind a norm and added to the stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        keys = shape.key_heads * shape.head_size
        self.attention_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.query = nn.Linear(shape.hidden, shape.hidden, bias=shape.qkv_bias)
        self.key = nn.Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.value = nn.Linear(shape.hidden, keys, bias=shape.qkv_bias)
        self.attention_out = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.feed_norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.gate = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.up = nn.Linear(shape.hidden, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, stream: Tensor, rotation: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        """Apply the block to a stream (B, L, hidden); `visible` is (B, 1, L, L), true = seen."""
        stream = stream + self._attend(self.attention_norm(stream), rotation, visible)
        normed = self.feed_norm(stream)
        return stream + self.down(functional.silu(self.gate(normed)) * self.up(normed))

    def _attend(self, x: Tensor, rotation: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
        query, key = (rotate(self._heads(part(x)), *rotation) for part in (self.query, self.key))
        value = self._heads(self.value(x))
        repeats = self.shape.heads // self.shape.key_heads
        if repeats > 1:
            key, value = (part.repeat_interleave(repeats, dim=1) for part in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
        return self.attention_out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.head_size)).transpose(1, 2)


class Network(nn.Module):
    """Embedding, blocks, norm and an untied head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.hidden, eps=shape.norm_eps)
        self.head = nn.Linear(shape.hidden, shape.vocabulary, bias=False)
        self._start()

    def forward(self, tokens: Tensor, visible: Tensor) -> Tensor:
        """Logits (B, L, V) of tokens (B, L); `visible` is (B, 1, L, L), true = seen."""
        stream = self.embedding(tokens)
        rotation = angles(tokens.shape[1], self.shape, tokens.device, torch.float32)
        for block in self.blocks:
            stream = block(stream, rotation, visible)
        return self.head(self.norm(stream))

    def _start(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)
            if name.endswith(("attention_out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / (2 * self.shape.layers) ** 0.5)
            if name.endswith("bias"):
                nn.init.zeros_(weight)


def angles(
    length: int, shape: Shape, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosines and sines (L, head size) of the rotary positions 0 .. length - 1."""
    steps = torch.arange(0, shape.head_size, 2, device=device, dtype=torch.float32)
    frequency = shape.rope_theta ** (-steps / shape.head_size)
    turn = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
    both = torch.cat((turn, turn), dim=-1)
    return both.cos().to(dtype), both.sin().to(dtype)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn queries or keys (B, heads, L, head size) by their positions, halves together."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cosine + turned * sine).to(x.dtype)
