"""Small checkpoints on disk, and quantized models of them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dllm_sweep import load_model, quantize
from tests.conftest import VOCABULARY, build_dream

DATA = Path(__file__).parents[1] / "data"
IDS = torch.randint(2, 60, (2, 24), generator=torch.Generator().manual_seed(1))
TEXTS = torch.randint(2, 60, (8, 64), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """Folders by name: a LLaDA, a Dream with biases and grouped queries, and one that is tied."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {
        "llada": DATA / "llada-random",
        "dream": write_dream(root / "dream", tied=False),
        "tied dream": write_dream(root / "tied", tied=True),
    }


@pytest.fixture
def make_quantized(checkpoints):
    """Quantize one of the small checkpoints, on random token ids."""

    def make(checkpoint, method, scheme, *, dtype=None, **parameters):
        model = load_model(str(checkpoints[checkpoint]), device="cpu", dtype=dtype)
        return quantize(model, method=method, scheme=scheme, calibration=TEXTS, **parameters)

    return make


def write_dream(folder, *, tied):
    model = build_dream(tied=tied)
    tensors = dict(model.host.state_dict())
    if tied:
        del tensors["lm_head.weight"]
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    config = model.host.config.to_dict()
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps")
    kept += ("num_attention_heads", "num_key_value_heads", "tie_word_embeddings")
    kept += ("eos_token_id", "pad_token_id", "rope_parameters")
    own = {"model_type": "Dream", "max_position_embeddings": 128, "mask_token_id": VOCABULARY - 1}
    own |= {key: config[key] for key in kept}
    (folder / "config.json").write_text(json.dumps(own))
    return folder
