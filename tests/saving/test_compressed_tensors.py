"""The export that transformers reads: proven by transformers and compressed-tensors themselves."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from dllm_sweep import load_model, save_quantized
from dllm_sweep.errors import InputError
from dllm_sweep.quant.apply import replace
from dllm_sweep.quant.packing import codes_of, weight_of
from tests.saving.conftest import IDS

LAYOUT = "compressed-tensors"

CASES = {
    "symmetric groups": ("llada", "rtn", "w4a16-g16-sym", {}),
    "asymmetric groups": ("dream", "gptq", "w4a16-g8", {}),
    "symmetric channels": ("dream", "rtn", "w8a16-sym", {}),
    "asymmetric channels": ("llada", "awq", "w8a16", {"grid_points": 3, "clip_steps": 3}),
    "half precision": ("llada", "gptq", "w3a16-g16", {"dtype": "bfloat16"}),
    "tied": ("tied dream", "rtn", "w4a16-g8", {}),
    "some linears": ("dream", "gptq", "w4a16", {"skip_modules": ["*.o_proj", "*.0.mlp.*"]}),
    "one grid": ("llada", "rtn", "w4a16", {"per_tensor": True}),
}


def read_back(folder):
    """The folder as transformers gives it, with nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers.models.")
    return model


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_back_the_same_weights_and_logits(case, make_quantized, tmp_path):
    checkpoint, method, scheme, options = CASES[case]
    model = make_quantized(checkpoint, method, scheme, **options)
    save_quantized(model, tmp_path / "out", layout=LAYOUT)
    back = read_back(tmp_path / "out")
    with torch.inference_mode():
        logits = back(input_ids=IDS).logits
    assert torch.equal(logits, model.host(input_ids=IDS).logits)
    for name, linear in model.linears().items():
        assert torch.equal(back.get_submodule(name).weight, linear.weight), name


@pytest.mark.parametrize(
    ("bits", "grid"),
    [(2, "asym"), (3, "sym"), (4, "asym"), (5, "asym"), (6, "sym"), (7, "asym"), (8, "asym")],
)
def test_every_width_is_read_back_and_is_small(bits, grid, make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", f"w{bits}a16-g32-{grid}", modules=["*.0.mlp.*"])
    saved = save_quantized(model, tmp_path / "out", layout=LAYOUT)
    back = read_back(tmp_path / "out")
    for name in ("gate_proj", "down_proj"):
        found, expected = (
            part.get_submodule(f"model.layers.0.mlp.{name}").weight for part in (back, model.host)
        )
        assert torch.equal(found, expected)
    words = load_file(tmp_path / "out" / "model.safetensors")[
        "model.layers.0.mlp.down_proj.weight_packed"
    ]
    assert (words.dtype, words.shape) == (torch.int32, (64, 160 * bits // 32))
    assert bits + 1 <= saved.stored_bits < bits + 2.1


def test_inputs_that_fill_no_whole_words_are_padded(make_quantized, tmp_path):
    # 296 inputs of 3 bits are 27.75 words; 112 outputs with 5 bits a zero are 17.5.
    model = make_quantized("dream", "rtn", "w3a16", modules=["*.down_proj"])
    save_quantized(model, tmp_path / "out", layout=LAYOUT)
    back, name = read_back(tmp_path / "out"), "model.layers.1.mlp.down_proj"
    assert torch.equal(back.get_submodule(name).weight, model.host.get_submodule(name).weight)


def test_the_configuration_is_the_host_class_s_and_says_what_is_special(make_quantized, tmp_path):
    model = make_quantized("dream", "gptq", "w4a16-g8", skip_modules=["*.v_proj"])
    save_quantized(model, tmp_path / "out", layout=LAYOUT)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.architectures) == ("qwen2", ["Qwen2ForCausalLM"])
    assert config.is_causal is False
    assert config.mask_token_id == model.special.mask_id
    said = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (said["quant_method"], said["format"]) == (LAYOUT, "pack-quantized")
    assert said["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert said["ignore"] == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "lm_head",
    ]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert "logits that predict position i are those of position i - 1" in card


def test_grids_that_happen_to_be_symmetric_among_others_are_read_right(make_quantized, tmp_path):
    # transformers takes the first group of the configuration for all linears.
    model = make_quantized("llada", "rtn", "w4a16")
    part = model.host.get_submodule("model.layers.0.self_attn.q_proj")
    codes = codes_of(part.weight, part.grid)
    part.grid.zeros.fill_(8)
    part.weight.copy_(weight_of(codes, part.grid, part.weight.dtype))
    save_quantized(model, tmp_path / "out", layout=LAYOUT)
    with torch.inference_mode():
        logits = read_back(tmp_path / "out")(input_ids=IDS).logits
    assert torch.equal(logits, model.host(input_ids=IDS).logits)


def test_linears_with_different_widths_are_refused(make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", "w4a16", modules=["*.mlp.*"])
    narrow = make_quantized("llada", "rtn", "w2a16")
    name = "model.layers.0.self_attn.q_proj"
    replace(model.host, name, narrow.host.get_submodule(name))
    with pytest.raises(InputError, match="one bit-width and one group size for all linears"):
        save_quantized(model, tmp_path / "out", layout=LAYOUT)


def test_a_folder_in_our_layout_can_be_exported_later(make_quantized, tmp_path):
    model = make_quantized("llada", "gptq", "w4a16-g16")
    save_quantized(model, tmp_path / "ours")
    loaded = load_model(str(tmp_path / "ours"), device="cpu")
    save_quantized(loaded, tmp_path / "theirs", layout=LAYOUT)
    with torch.inference_mode():
        logits = read_back(tmp_path / "theirs")(input_ids=IDS).logits
    assert torch.equal(logits, model.host(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("method", "scheme", "options", "reason"),
    [
        ("rtn", "w4a8", {}, "rounds its input"),
        ("rtn", "w16a8", {}, "rounds its input"),
        ("rtn", "w4a16-kv4", {}, "no place for rounded queries, keys or values"),
        ("gptq", "w4a16-g16", {"static_groups": False}, "set static_groups of gptq to true"),
        ("quarot", "w4a16", {}, "transforms its input when it is called"),
        ("duquant", "w4a16", {"steps": 4}, "transforms its input when it is called"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused(
    method, scheme, options, reason, make_quantized, tmp_path
):
    model = make_quantized("llada", method, scheme, **options)
    with pytest.raises(InputError, match=f"{reason}.*save it in the layout dllm-sweep"):
        save_quantized(model, tmp_path / "out", layout=LAYOUT)
    assert not (tmp_path / "out").exists()
