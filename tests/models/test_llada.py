import json

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.llada import PLUGIN


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("case", ["clean", "masked", "long", "one"])
def test_logits_agree_with_the_authors_code(model, golden, case):
    found = model.logits(golden[f"ids_{case}"])
    assert relative_error(found, golden[f"logits_{case}"]) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_agree_with_rows_run_alone(model, golden, side):
    shown = golden[f"attention_mask_{side}"]
    found = model.logits(golden[f"ids_pad_{side}"], shown)
    real = shown.bool()
    assert relative_error(found[real], golden[f"logits_pad_{side}"][real]) < 1e-5


def test_hidden_states_of_every_layer_agree_with_the_authors_code(model, golden):
    with torch.inference_mode():
        states = model.host(
            input_ids=golden["ids_masked"], output_hidden_states=True, use_cache=False
        ).hidden_states
    for layer, found in enumerate(states[:-1]):
        assert relative_error(found, golden[f"hidden_{layer}"]) < 1e-5


def test_bfloat16_stays_within_its_rounding(golden, model):
    rounded = load_model(model.name, device="cpu", dtype="bfloat16")
    found, expected = rounded.logits(golden["ids_long"]).float(), golden["logits_long"]
    assert relative_error(found, expected) < 3e-2
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


def rms_norm(x, gain):
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain


def rotate(x, theta):
    """Rotary embedding on (heads, length, size), first half paired with second half."""
    length, size = x.shape[-2:]
    angle = torch.arange(length)[:, None] * theta ** (-torch.arange(0, size, 2) / size)
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def plain_forward(tensors, config, ids):
    """LLaDA written out for one sequence, from its public tensor names alone."""
    heads, narrow = config["n_heads"], config["n_kv_heads"]
    size = config["d_model"] // heads
    x = tensors["model.transformer.wte.weight"][ids]
    for block in range(config["n_layers"]):
        w = {
            name.split(".")[-2]: value
            for name, value in tensors.items()
            if f".blocks.{block}." in name
        }
        h = rms_norm(x, w["attn_norm"])
        q = rotate((h @ w["q_proj"].T).view(-1, heads, size).transpose(0, 1), config["rope_theta"])
        k = rotate((h @ w["k_proj"].T).view(-1, narrow, size).transpose(0, 1), config["rope_theta"])
        v = (h @ w["v_proj"].T).view(-1, narrow, size).transpose(0, 1)
        k, v = (one.repeat_interleave(heads // narrow, 0) for one in (k, v))
        seen = (q @ k.transpose(1, 2) / size**0.5).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ w["attn_out"].T
        h = rms_norm(x, w["ff_norm"])
        x = (
            x
            + (torch.nn.functional.silu(h @ w["ff_proj"].T) * (h @ w["up_proj"].T)) @ w["ff_out"].T
        )
    head = "wte" if config["weight_tying"] else "ff_out"
    x = rms_norm(x, tensors["model.transformer.ln_f.weight"])
    return x @ tensors[f"model.transformer.{head}.weight"].T


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("tied", [False, True])
def test_an_unseen_size_gives_what_the_written_out_model_gives(
    write_checkpoint, key_value_heads, tied
):
    folder = write_checkpoint(n_kv_heads=key_value_heads, weight_tying=tied)
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(0, 90, (23,), generator=torch.Generator().manual_seed(1))
    found = load_model(str(folder), device="cpu").logits(ids[None])[0]
    assert relative_error(found, plain_forward(tensors, config, ids)) < 1e-5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_type", "sequential"),
        ("layer_norm_type", "default"),
        ("activation_type", "swiglu"),
        ("alibi", True),
        ("rope", False),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("attention_layer_norm", True),
        ("block_group_size", 2),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("quantization_config", {"bits": 4}),
        ("n_kv_heads", 3),
        ("n_heads", 5),
    ],
)
def test_what_llama_does_not_compute_is_refused_by_name(write_checkpoint, key, value):
    folder = write_checkpoint(tensors={}, **{key: value})
    with pytest.raises(CheckpointError, match=key) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["mask_token_id", "weight_tying", "d_model", "rope_theta"])
def test_a_missing_key_is_named(write_checkpoint, key):
    folder = write_checkpoint(drop=(key,))
    with pytest.raises(CheckpointError, match=key):
        load_model(str(folder), device="cpu")


def test_absent_switches_mean_what_the_authors_code_takes(write_checkpoint):
    folder = write_checkpoint(drop=("include_bias", "layer_norm_type"))
    with pytest.raises(CheckpointError, match=r"layer_norm_type.*include_bias"):
        load_model(str(folder), device="cpu")


def test_the_head_and_the_down_projections_are_not_confused():
    assert PLUGIN.tensor_name("model.transformer.ff_out.weight") == "lm_head.weight"
    inner = PLUGIN.tensor_name("model.transformer.blocks.11.ff_out.weight")
    assert inner == "model.layers.11.mlp.down_proj.weight"
    assert PLUGIN.tensor_name("xmodel.transformer.blocks.1.ff_out.weight") is None
    assert PLUGIN.tensor_name("model.transformer.blocks.1.ff_out.weight.scale") is None


def test_linear_groups_cover_every_linear_of_a_block(model):
    names = {
        name
        for name, module in model.blocks[0].named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for group in PLUGIN.linear_groups for name in group.linears} == names
