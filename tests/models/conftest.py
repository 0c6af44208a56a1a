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


DREAM = {
    "model_type": "Dream",
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "vocab_size": 96,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "mask_token_id": 95,
    "eos_token_id": 94,
    "pad_token_id": 94,
}

SDAR = {
    **DREAM,
    "model_type": "sdar",
    "head_dim": 16,
    "num_hidden_layers": 3,
    "block_size": 4,
}
ILLADA = {
    **{key: value for key, value in DREAM.items() if key != "mask_token_id"},
    "model_type": "illada",
    "num_hidden_layers": 3,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
}


def random_qwen_tensors(config, seed=0):
    """All tensors of a checkpoint in Llama's names, with what its family has beside them."""
    generator = torch.Generator().manual_seed(seed)
    width, ffn, heads = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    size = config.get("head_dim") or width // heads
    wide, narrow = heads * size, config["num_key_value_heads"] * size
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], width)
    for block in range(config["num_hidden_layers"]):
        sizes = {
            "input_layernorm.weight": (width,),
            "post_attention_layernorm.weight": (width,),
            "self_attn.q_proj.weight": (wide, width),
            "self_attn.k_proj.weight": (narrow, width),
            "self_attn.v_proj.weight": (narrow, width),
            "self_attn.o_proj.weight": (width, wide),
            "mlp.gate_proj.weight": (ffn, width),
            "mlp.up_proj.weight": (ffn, width),
            "mlp.down_proj.weight": (width, ffn),
        }
        if config["model_type"] == "Dream":
            sizes |= {f"self_attn.{one}_proj.bias": (narrow,) for one in "kv"}
            sizes["self_attn.q_proj.bias"] = (wide,)
        if config["model_type"] == "sdar":
            sizes |= {f"self_attn.{one}_norm.weight": (size,) for one in "qk"}
        shapes |= {f"model.layers.{block}.{name}": shape for name, shape in sizes.items()}
    return {
        name: torch.randn(shape, generator=generator) * 0.1 + (1.0 if "norm" in name else 0.0)
        for name, shape in shapes.items()
    }


def write_folder(folder, config, tensors, shards=1):
    """Write config.json and weights, in one file or in shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
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


def checkpoint_writer(folder, base, make_tensors):
    def write(change=None, tensors=None, shards=1, drop=(), **options):
        config = {**base, **options}
        tensors = make_tensors(config) if tensors is None else tensors
        if change is not None:
            change(tensors)
        written = {key: value for key, value in config.items() if key not in drop}
        return write_folder(folder, written, tensors, shards)

    return write


@pytest.fixture
def write_checkpoint(tmp_path):
    """Write a LLaDA checkpoint of a size that no other test data has, and give its folder."""
    return checkpoint_writer(tmp_path / "checkpoint", CONFIG, random_tensors)


@pytest.fixture
def write_dream(tmp_path):
    """Write a Dream checkpoint of a size that no other test data has, and give its folder."""
    return checkpoint_writer(tmp_path / "dream", DREAM, random_qwen_tensors)


@pytest.fixture
def write_sdar(tmp_path):
    """Write an SDAR checkpoint of a size that no other test data has, and give its folder."""
    return checkpoint_writer(tmp_path / "sdar", SDAR, random_qwen_tensors)


@pytest.fixture
def write_illada(tmp_path):
    """Write an iLLaDA checkpoint of a size that no other test data has, and give its folder."""
    return checkpoint_writer(tmp_path / "illada", ILLADA, random_qwen_tensors)


@pytest.fixture(scope="session")
def every_family(model, dream, tmp_path_factory):
    """A small random model of each family, by its name."""
    folder = tmp_path_factory.mktemp("families")
    written = {
        config["model_type"]: write_folder(
            folder / config["model_type"], config, random_qwen_tensors(config)
        )
        for config in (SDAR, ILLADA)
    }
    others = {name: load_model(str(path), device="cpu") for name, path in written.items()}
    return {"llada": model, "dream": dream, **others}


@pytest.fixture(scope="session")
def model():
    return load_model(str(DATA / "llada-random"), device="cpu")


@pytest.fixture(scope="session")
def golden():
    return load_file(DATA / "llada-golden" / "logits.safetensors")


@pytest.fixture(scope="session")
def dream():
    return load_model(str(DATA / "dream-random"), device="cpu")


@pytest.fixture(scope="session")
def dream_golden():
    return load_file(DATA / "dream-golden" / "logits.safetensors")
