import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.models.illada import PLUGIN
from tests.models.conftest import ILLADA, random_qwen_tensors


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_it_computes_what_llada_computes_from_the_same_weights(write_illada, write_checkpoint):
    """Their blocks are the same; LLaDA's are compared with the authors' code elsewhere."""
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "q_proj",
        "self_attn.k_proj": "k_proj",
        "self_attn.v_proj": "v_proj",
        "self_attn.o_proj": "attn_out",
        "post_attention_layernorm": "ff_norm",
        "mlp.gate_proj": "ff_proj",
        "mlp.up_proj": "up_proj",
        "mlp.down_proj": "ff_out",
    }
    renamed = {}
    for name, value in random_qwen_tensors(ILLADA).items():
        if name.startswith("model.layers."):
            _, _, block, inner = name.removesuffix(".weight").split(".", 3)
            renamed[f"model.transformer.blocks.{block}.{names[inner]}.weight"] = value
        else:
            kind = "wte" if "embed" in name else "ln_f"
            renamed[f"model.transformer.{kind}.weight"] = value
    same = {
        "n_layers": 3,
        "rope_theta": ILLADA["rope_theta"],
        "rms_norm_eps": 1e-6,
        "weight_tying": True,
    }
    llada = load_model(str(write_checkpoint(tensors=renamed, **same)), device="cpu")
    illada = load_model(str(write_illada()), device="cpu")
    ids = torch.randint(0, 90, (2, 19), generator=torch.Generator().manual_seed(0))
    assert relative_error(illada.logits(ids), llada.logits(ids)) < 1e-6


def test_the_mask_is_the_released_models_where_config_does_not_name_one(write_illada):
    assert load_model(str(write_illada()), device="cpu").special.mask_id == 5
    assert load_model(str(write_illada(mask_token_id=95)), device="cpu").special.mask_id == 95


def test_biases_are_read_where_config_says_so(write_illada):
    biases = {
        f"model.layers.{block}.self_attn.{one}_proj.bias": torch.ones(24 if one in "kv" else 48)
        for block in range(3)
        for one in "qkvo"
    }
    folder = write_illada(attention_bias=True, change=lambda tensors: tensors.update(biases))
    model = load_model(str(folder), device="cpu")
    assert torch.equal(model.blocks[2].self_attn.k_proj.bias, torch.ones(24))
    folder = write_illada(change=lambda tensors: tensors.update(biases))
    with pytest.raises(CheckpointError, match=r"12 unexpected: .*bias"):
        load_model(str(folder), device="cpu")


def test_another_kind_of_norm_is_refused(write_illada):
    with pytest.raises(CheckpointError, match="layer_norm_eps"):
        load_model(str(write_illada(layer_norm_eps=1e-5)), device="cpu")


def test_a_conversation_without_the_authors_template_is_refused():
    with pytest.raises(InputError, match="chat template"):
        PLUGIN.chat_text([{"role": "user", "content": "2 + 2?"}])
