import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep import load_model
from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.models.load import check_bidirectional
from dllm_sweep.quant.capture import capture_first_block, run_block


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def rms_norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * gain


def rotate(x, theta):
    """Rotary embedding on (heads, length, size), first half paired with second half."""
    length, size = x.shape[-2:]
    angle = torch.arange(length)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def plain_forward(tensors, config, ids):
    """SDAR written out for one sequence: heads are normalized, earlier blocks are seen."""
    length, theta, size = len(ids), config["rope_theta"], config["head_dim"]
    x = tensors["model.embed_tokens.weight"][ids]
    hidden = torch.ones(length, length, dtype=torch.bool)
    for query in range(length):
        end = (query // config["block_size"] + 1) * config["block_size"]
        hidden[query, :end] = False
    for block in range(config["num_hidden_layers"]):
        w = {
            name.split(".", 3)[3].removesuffix(".weight"): value
            for name, value in tensors.items()
            if name.startswith(f"model.layers.{block}.")
        }
        h = rms_norm(x, w["input_layernorm"])
        q, k, v = (
            (h @ w[f"self_attn.{one}_proj"].T).view(length, -1, size).transpose(0, 1)
            for one in "qkv"
        )
        q = rotate(rms_norm(q, w["self_attn.q_norm"]), theta)
        k = rotate(rms_norm(k, w["self_attn.k_norm"]), theta)
        k, v = (one.repeat_interleave(len(q) // len(one), 0) for one in (k, v))
        scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(hidden, -torch.inf)
        seen = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + seen @ w["self_attn.o_proj"].T
        h = rms_norm(x, w["post_attention_layernorm"])
        gate = torch.nn.functional.silu(h @ w["mlp.gate_proj"].T)
        x = x + (gate * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return rms_norm(x, tensors["model.norm.weight"]) @ tensors["lm_head.weight"].T


@pytest.mark.parametrize("block_size", [2, 4, 16])
@pytest.mark.parametrize("shards", [1, 2])
def test_logits_are_those_of_the_written_out_model(write_sdar, block_size, shards):
    folder = write_sdar(block_size=block_size, shards=shards)
    tensors = {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(0, 90, (23,), generator=torch.Generator().manual_seed(1))
    model = load_model(str(folder), device="cpu")
    assert model.block_size == block_size
    found = model.logits(ids[None])[0]
    assert relative_error(found, plain_forward(tensors, config, ids)) < 1e-5


def test_later_blocks_change_nothing(every_family):
    model = every_family["sdar"]
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[:, 8:] = 3
    first, second = model.logits(ids), model.logits(changed)
    assert torch.allclose(first[:, :8], second[:, :8], rtol=0, atol=1e-6)
    assert not torch.allclose(first[:, 8:], second[:, 8:])


def test_padding_on_the_left_does_not_move_the_blocks(every_family):
    model = every_family["sdar"]
    ids = torch.randint(0, 90, (1, 17), generator=torch.Generator().manual_seed(2))
    padded = torch.cat((torch.full((1, 3), 94), ids), 1)
    shown = torch.cat((torch.zeros(1, 3, dtype=torch.int64), torch.ones_like(ids)), 1)
    found = model.logits(padded, shown)[:, 3:]
    assert relative_error(found, model.logits(ids)) < 1e-5


def test_layer_wise_methods_see_the_mask_of_blocks(every_family):
    model = every_family["sdar"]
    ids = torch.randint(0, 90, (2, 24), generator=torch.Generator().manual_seed(3))
    batch = CalibrationBatch(input_ids=ids, attention_mask=None, masked=ids == 95)
    inputs = capture_first_block(model, [batch])
    (hidden,), (keywords,) = inputs.hidden, inputs.keywords
    for block in model.blocks:
        hidden = run_block(block, hidden, keywords)
    found = model.host.lm_head(model.host.model.norm(hidden))
    assert relative_error(found, model.logits(ids)) < 1e-6


@pytest.mark.parametrize("wrong", [None, 2, 8])
def test_another_mask_than_the_checkpoints_is_noticed(write_sdar, wrong):
    model = load_model(str(write_sdar()), device="cpu")
    other = SimpleNamespace(block_size=wrong)
    model.host_mask = lambda ids, mask: DiffusionModel.host_mask(other, ids, mask)
    with pytest.raises(CheckpointError, match="attention"):
        check_bidirectional(model)


@pytest.mark.parametrize("key", ["block_size", "rope_theta", "head_dim"])
def test_a_missing_key_is_named(write_sdar, key):
    with pytest.raises(CheckpointError, match=key):
        load_model(str(write_sdar(drop=(key,))), device="cpu")


def test_the_mask_is_the_released_models_where_config_does_not_name_one(write_sdar):
    with pytest.raises(CheckpointError, match="token id 151669 is outside the vocabulary of 96"):
        load_model(str(write_sdar(drop=("mask_token_id",))), device="cpu")


def test_a_config_written_by_newer_transformers_gives_the_same(write_sdar, every_family):
    newer = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
    folder = write_sdar(drop=("rope_theta", "rope_scaling"), **newer)
    ids = torch.arange(20)[None]
    expected = every_family["sdar"].logits(ids)
    assert torch.equal(load_model(str(folder), device="cpu").logits(ids), expected)
    newer["rope_parameters"]["rope_type"] = "yarn"
    with pytest.raises(CheckpointError, match="yarn"):
        load_model(str(write_sdar(drop=("rope_theta",), **newer)), device="cpu")


def test_a_missing_head_norm_is_named(write_sdar):
    name = "model.layers.1.self_attn.k_norm.weight"
    folder = write_sdar(change=lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"1 missing: .*k_norm"):
        load_model(str(folder), device="cpu")
