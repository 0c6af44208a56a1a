import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dllm_sweep import load_model

DATA = Path(__file__).parents[1] / "data"

CONFIG = {
    "model_type": "llada",
    "block_type": "llama",
    "block_group_size": 1,
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "include_bias": False,
    "bias_for_layer_norm": False,
    "d_model": 48,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "mlp_hidden_size": 80,
    "max_sequence_length": 64,
    "embedding_size": 96,
    "vocab_size": 90,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "weight_tying": False,
    "mask_token_id": 95,
    "eos_token_id": 94,
    "pad_token_id": 94,
}


def random_tensors(config, seed=0):
    """All tensors of a LLaDA checkpoint, float32, by their public names."""
    generator = torch.Generator().manual_seed(seed)
    width, ffn = config["d_model"], config["mlp_hidden_size"]
    narrow = width // config["n_heads"] * (config["n_kv_heads"] or config["n_heads"])
    shapes = {"model.transformer.wte.weight": (config["embedding_size"], width)}
    shapes["model.transformer.ln_f.weight"] = (width,)
    if not config["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = (config["embedding_size"], width)
    for block in range(config["n_layers"]):
        sizes = {
            "attn_norm": (width,),
            "q_proj": (width, width),
            "k_proj": (narrow, width),
            "v_proj": (narrow, width),
            "attn_out": (width, width),
            "ff_norm": (width,),
            "ff_proj": (ffn, width),
            "up_proj": (ffn, width),
            "ff_out": (width, ffn),
        }
        for name, shape in sizes.items():
            shapes[f"model.transformer.blocks.{block}.{name}.weight"] = shape
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + (1.0 if len(shape) == 1 else 0.0)
        for name, shape in shapes.items()
    }


@pytest.fixture
def write_checkpoint(tmp_path):
    """Write a checkpoint of a size that no other test data has, and give its folder."""

    def write(change=None, tensors=None, shards=1, drop=(), **options):
        config = {**CONFIG, **options}
        tensors = random_tensors(config) if tensors is None else tensors
        if change is not None:
            change(tensors)
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        written = {key: value for key, value in config.items() if key not in drop}
        (folder / "config.json").write_text(json.dumps(written))
        if shards == 1:
            save_file(tensors, folder / "model.safetensors")
            return folder
        index = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: tensors[name] for name in list(tensors)[shard::shards]}
            save_file(part, folder / file)
            index |= dict.fromkeys(part, file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        return folder

    return write


@pytest.fixture(scope="session")
def model():
    return load_model(str(DATA / "llada-random"), device="cpu")


@pytest.fixture(scope="session")
def golden():
    return load_file(DATA / "llada-golden" / "logits.safetensors")
