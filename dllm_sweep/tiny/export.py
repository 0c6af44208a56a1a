"""Write a trained network in the public layout of a model family."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.tiny.network import Network, Shape
from dllm_sweep.tiny.tokenizer import END, MASK, START


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a family's checkpoints call the parts of a network.

    Attributes:
        outer: Full names of the tensors outside the blocks, by the network's names.
        block: What a block's tensors start with; `{}` is its number.
        parts: Names within a block, by the network's names.
        config: The fields of config.json for a shape.
    """

    outer: Mapping[str, str]
    block: str
    parts: Mapping[str, str]
    config: Callable[[Shape], dict[str, object]]

    def tensor_name(self, name: str) -> str:
        """The family's name of a tensor of the network."""
        if name in self.outer:
            return self.outer[name]
        _, place, part, kind = name.split(".")
        return f"{self.block.format(place)}.{self.parts[part]}.{kind}"


def export(network: Network, folder: Path, layout: Layout) -> None:
    """Write config.json and model.safetensors (bf16) as the family's checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in named_weights(network, layout)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(layout.config(network.shape), indent=2)
    (folder / "config.json").write_text(config + "\n")


def named_weights(network: Network, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """The network's weights under the family's names."""
    for name, weight in network.state_dict().items():
        yield layout.tensor_name(name), weight.detach().cpu().contiguous()


def llada_config(shape: Shape) -> dict[str, object]:
    """The fields of LLaDA's config.json for a shape."""
    return {
        "activation_type": "silu",
        "alibi": False,
        "architectures": ["LLaDAModelLM"],
        "attention_dropout": 0.0,
        "attention_layer_norm": False,
        "block_group_size": 1,
        "block_type": "llama",
        "d_model": shape.hidden,
        "embedding_dropout": 0.0,
        "embedding_size": shape.vocabulary,
        "eos_token_id": END,
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "layer_norm_type": "rms",
        "layer_norm_with_affine": True,
        "mask_token_id": MASK,
        "max_sequence_length": shape.context,
        "mlp_hidden_size": shape.feed_forward,
        "mlp_ratio": shape.feed_forward // shape.hidden,
        "model_type": "llada",
        "n_heads": shape.heads,
        "n_kv_heads": shape.key_heads,
        "n_layers": shape.layers,
        "pad_token_id": END,
        "residual_dropout": 0.0,
        "rms_norm_eps": shape.norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": shape.rope_theta,
        "scale_logits": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "vocab_size": shape.vocabulary,
        "weight_tying": False,
    }


def dream_config(shape: Shape) -> dict[str, object]:
    """The fields of Dream's config.json for a shape."""
    return {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "bos_token_id": START,
        "eos_token_id": END,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.feed_forward,
        "mask_token_id": MASK,
        "max_position_embeddings": shape.context,
        "max_window_layers": shape.layers,
        "model_type": "Dream",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.key_heads,
        "pad_token_id": END,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": False,
        "use_sliding_window": False,
        "vocab_size": shape.vocabulary,
    }


LLADA = Layout(
    outer={
        "embedding.weight": "model.transformer.wte.weight",
        "norm.weight": "model.transformer.ln_f.weight",
        "head.weight": "model.transformer.ff_out.weight",
    },
    block="model.transformer.blocks.{}",
    parts={
        "attention_norm": "attn_norm",
        "query": "q_proj",
        "key": "k_proj",
        "value": "v_proj",
        "attention_out": "attn_out",
        "feed_norm": "ff_norm",
        "gate": "ff_proj",
        "up": "up_proj",
        "down": "ff_out",
    },
    config=llada_config,
)
DREAM = Layout(
    outer={
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    },
    block="model.layers.{}",
    parts={
        "attention_norm": "input_layernorm",
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "attention_out": "self_attn.o_proj",
        "feed_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
    },
    config=dream_config,
)
