"""Write a trained network in the public layout of a model family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from dllm_sweep.tiny.network import Network, Shape
from dllm_sweep.tiny.tokenizer import END, MASK

_LLADA_OUTER = {
    "embedding.weight": "model.transformer.wte.weight",
    "norm.weight": "model.transformer.ln_f.weight",
    "head.weight": "model.transformer.ff_out.weight",
}
_LLADA_BLOCK = {
    "attention_norm": "attn_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "attention_out": "attn_out",
    "feed_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}


def export_llada(network: Network, folder: Path) -> None:
    """Write config.json and model.safetensors (bf16) as LLaDA checkpoints have them."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16) for name, weight in llada_weights(network)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.dumps(llada_config(network.shape), indent=2)
    (folder / "config.json").write_text(config + "\n")


def llada_weights(network: Network) -> Iterator[tuple[str, Tensor]]:
    """The network's weights under LLaDA's names."""
    for name, weight in network.state_dict().items():
        yield _llada_name(name), weight.detach().cpu().contiguous()


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


def _llada_name(name: str) -> str:
    if name in _LLADA_OUTER:
        return _LLADA_OUTER[name]
    _, place, part, _ = name.split(".")
    return f"model.transformer.blocks.{place}.{_LLADA_BLOCK[part]}.weight"
