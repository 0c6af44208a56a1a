import json

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError
from dllm_sweep.models.dream import PLUGIN


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def shifted(logits):
    return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)


@pytest.mark.parametrize("case", ["clean", "masked", "long", "one"])
def test_logits_agree_with_the_authors_code(dream, dream_golden, case):
    found = dream.logits(dream_golden[f"ids_{case}"])
    assert relative_error(found, shifted(dream_golden[f"logits_{case}"])) < 1e-5


def test_the_shift_is_the_authors(dream, dream_golden):
    found = dream.logits(dream_golden["ids_masked"])
    assert relative_error(found, dream_golden["shifted_masked"]) < 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_agree_with_rows_run_alone(dream, dream_golden, side):
    shown = dream_golden[f"attention_mask_{side}"]
    found = dream.logits(dream_golden[f"ids_pad_{side}"], shown)
    expected = shifted(dream_golden[f"logits_pad_{side}"])
    # A row's first token reads the padding before it: no valid prediction, as in a row alone.
    real = shown.bool() & (shown.cumsum(1) > 1)
    assert relative_error(found[real], expected[real]) < 1e-5


def test_hidden_states_of_every_layer_agree_with_the_authors_code(dream, dream_golden):
    with torch.inference_mode():
        states = dream.host(
            input_ids=dream_golden["ids_masked"], output_hidden_states=True, use_cache=False
        ).hidden_states
    for layer, found in enumerate(states[:-1]):
        assert relative_error(found, dream_golden[f"hidden_{layer}"]) < 1e-5


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
    """Dream written out for one sequence, from its public tensor names alone, not shifted."""
    heads, narrow = config["num_attention_heads"], config["num_key_value_heads"]
    size, theta = config["hidden_size"] // heads, config["rope_theta"]
    x = tensors["model.embed_tokens.weight"][ids]
    for block in range(config["num_hidden_layers"]):
        w = {
            name.split(".", 3)[3]: value
            for name, value in tensors.items()
            if name.startswith(f"model.layers.{block}.")
        }
        h = rms_norm(x, w["input_layernorm.weight"])
        q, k, v = (
            (h @ w[f"self_attn.{one}_proj.weight"].T + w[f"self_attn.{one}_proj.bias"])
            .view(len(ids), -1, size)
            .transpose(0, 1)
            for one in "qkv"
        )
        k, v = (one.repeat_interleave(heads // narrow, 0) for one in (rotate(k, theta), v))
        seen = (rotate(q, theta) @ k.transpose(1, 2) / size**0.5).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(h @ w["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
    return rms_norm(x, tensors["model.norm.weight"]) @ tensors[f"{head}.weight"].T


@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
@pytest.mark.parametrize("shards", [1, 3])
def test_an_unseen_size_gives_what_the_written_out_model_gives(
    write_dream, key_value_heads, shards
):
    tied = key_value_heads == 2
    folder = write_dream(
        shards=shards, num_key_value_heads=key_value_heads, tie_word_embeddings=tied
    )
    tensors = {
        name: value
        for file in folder.glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    config = json.loads((folder / "config.json").read_text())
    ids = torch.randint(0, 90, (23,), generator=torch.Generator().manual_seed(1))
    found = load_model(str(folder), device="cpu").logits(ids[None])
    assert relative_error(found, shifted(plain_forward(tensors, config, ids)[None])) < 1e-5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("use_sliding_window", True),
        ("quantization_config", {"bits": 4}),
        ("num_key_value_heads", 3),
        ("num_attention_heads", 5),
    ],
)
def test_what_qwen2_does_not_compute_is_refused_by_name(write_dream, key, value):
    folder = write_dream(tensors={}, **{key: value})
    with pytest.raises(CheckpointError, match=key):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("key", ["mask_token_id", "rms_norm_eps", "tie_word_embeddings"])
def test_a_missing_key_is_named(write_dream, key):
    with pytest.raises(CheckpointError, match=key):
        load_model(str(write_dream(drop=(key,))), device="cpu")


def test_a_missing_bias_is_named(write_dream):
    name = "model.layers.1.self_attn.k_proj.bias"
    folder = write_dream(change=lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"1 missing: model\.layers\.1\.self_attn\.k_proj\.b"):
        load_model(str(folder), device="cpu")


def test_a_bias_that_dream_does_not_have_is_unexpected(write_dream):
    extra = {"model.layers.0.self_attn.o_proj.bias": torch.zeros(48)}
    folder = write_dream(change=lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*o_proj\.bias"):
        load_model(str(folder), device="cpu")


def test_the_usable_length_is_what_the_models_were_trained_on(write_dream):
    assert load_model(str(write_dream()), device="cpu").max_length == 2048
    assert PLUGIN.max_length({"max_position_embeddings": 512}) == 512
