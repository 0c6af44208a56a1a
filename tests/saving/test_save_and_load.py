"""What is saved comes back bit for bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep import load_model, quantize, save_quantized
from dllm_sweep.errors import InputError
from dllm_sweep.manifest import MANIFEST, WEIGHTS, read_manifest
from dllm_sweep.quant.packing import codes_of, packed_bytes, weight_of
from tests.saving.conftest import IDS

ROOT = Path(__file__).parents[2]

METHODS = {
    "rtn": ("rtn", "w8a8-sym-qkv", {}),
    "gptq": ("gptq", "w4a16-g8", {}),
    "gptq-scattered": ("gptq", "w2a8-kv4-g8", {"static_groups": False}),
    "awq": ("awq", "w4a16-g8", {"grid_points": 3, "clip_steps": 3}),
    "smoothquant": ("smoothquant", "w8a8-kv8", {"groups": "all"}),
    "quarot": ("quarot", "w4a4-kv4", {"mse_clip": False}),
    "duquant": ("duquant", "w4a4", {"steps": 4, "skip_modules": ["*.1.mlp.down_proj"]}),
}
VARIANTS = {
    "one grid": ("rtn", "w3a16", {"per_tensor": True, "skip_modules": ["*.1.mlp.gate_proj"]}),
    "another solver": ("quarot", "w5a8", {"solver": "gptq", "skip_modules": ["*.0.*"]}),
    "activations alone": ("rtn", "w16a8", {}),
}
CASES = [("llada", case) for case in METHODS | VARIANTS] + [("dream", case) for case in METHODS]


@pytest.mark.parametrize(("checkpoint", "case"), CASES)
def test_a_saved_model_gives_identical_logits(checkpoint, case, make_quantized, tmp_path):
    method, scheme, parameters = (METHODS | VARIANTS)[case]
    model = make_quantized(checkpoint, method, scheme, **parameters)
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert torch.equal(back.logits(IDS), model.logits(IDS))
    assert back.quantization_report == model.quantization_report
    assert (back.recipe, back.special) == (model.recipe, model.special)


def test_another_process_computes_the_same_logits(make_quantized, tmp_path):
    expected = {}
    for name, checkpoint in (("quarot", "llada"), ("gptq-scattered", "dream")):
        method, scheme, parameters = METHODS[name]
        model = make_quantized(checkpoint, method, scheme, **parameters)
        save_quantized(model, tmp_path / name)
        expected[name] = model.logits(IDS)
    torch.save((IDS, expected), tmp_path / "expected.pt")
    code = """
import sys, torch
from dllm_sweep import load_model
ids, expected = torch.load("expected.pt")
for name, logits in expected.items():
    assert torch.equal(load_model(name, device="cpu").logits(ids), logits), name
"""
    # Another number of threads would add up sums in another order.
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision_comes_back_in_its_own_type(dtype, make_quantized, tmp_path):
    model = make_quantized("llada", "gptq", "w8a16-g16", dtype=dtype)
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert back.dtype == model.dtype
    assert torch.equal(back.logits(IDS), model.logits(IDS))
    wide = load_model(str(tmp_path / "out"), device="cpu", dtype="float32")
    name = "model.layers.0.mlp.up_proj"
    narrow = model.host.get_submodule(name).weight
    assert torch.equal(wide.host.get_submodule(name).weight, narrow.float())


def test_a_model_that_was_converted_is_not_saved_as_what_it_no_longer_is(make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", "w4a16")
    model.host.to(torch.bfloat16)
    with pytest.raises(InputError, match="quantized in float32 and is bfloat16 now"):
        save_quantized(model, tmp_path / "out")


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_the_folder_holds_codes_of_just_so_many_bits(bits, make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", f"w{bits}a16-g32")
    saved = save_quantized(model, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for name, part in model.linears().items():
        weights, groups = part.weight.numel(), part.grid.scales.numel()
        assert tensors[f"{name}.codes"].nbytes == packed_bytes(weights, bits)
        assert tensors[f"{name}.zeros"].nbytes == packed_bytes(groups, bits)
        assert f"{name}.weight" not in tensors
    # A group of 32 has a scale of 32 bits here, of 16 bits in results, and one zero.
    assert saved.stored_bits == pytest.approx(bits + (32 + bits) / 32)
    assert saved.average_bits == pytest.approx(bits + (16 + bits) / 32)


def test_a_symmetric_grid_stores_no_zeros(make_quantized, tmp_path):
    saved = save_quantized(make_quantized("llada", "rtn", "w4a16-g32-sym"), tmp_path / "out")
    assert not [name for name in load_file(tmp_path / "out" / WEIGHTS) if name.endswith(".zeros")]
    assert saved.stored_bits == 5


def test_a_loaded_model_can_be_saved_again_as_the_same_files(make_quantized, tmp_path):
    save_quantized(make_quantized("dream", "quarot", "w4a4"), tmp_path / "first")
    save_quantized(load_model(str(tmp_path / "first"), device="cpu"), tmp_path / "second")
    for name in (WEIGHTS, MANIFEST, "config.json"):
        first, second = (tmp_path / folder / name for folder in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(("method", "tied"), [("rtn", True), ("quarot", False)])
def test_a_head_that_is_the_embedding_is_stored_once_unless_a_method_parts_them(
    method, tied, make_quantized, tmp_path
):
    model = make_quantized("tied dream", method, "w4a16")
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert ("lm_head.weight" in load_file(tmp_path / "out" / WEIGHTS)) == (not tied)
    assert (back.host.lm_head.weight is back.host.model.embed_tokens.weight) == tied
    assert torch.equal(back.logits(IDS), model.logits(IDS))


def test_planted_outliers_are_saved_with_the_model(tmp_path):
    model = quantize(load_model("llada-tiny-outliers", device="cpu"), scheme="w4a8")
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert torch.equal(back.logits(IDS), model.logits(IDS))
    assert back.chat_prompt("1+1") == model.chat_prompt("1+1")


def test_a_weight_without_a_grid_is_stored_in_full(make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", "w4a16")
    name = "model.layers.1.mlp.up_proj"
    model.host.get_submodule(name).grid = None
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert f"{name}.weight" in load_file(tmp_path / "out" / WEIGHTS)
    assert torch.equal(back.logits(IDS), model.logits(IDS))


def test_zeros_that_are_no_codes_are_stored_as_numbers(make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", "w4a16")
    for part in model.linears().values():
        codes = codes_of(part.weight, part.grid)
        part.grid.zeros[0] -= 40
        part.weight.copy_(weight_of(codes, part.grid, part.weight.dtype))
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    weight = "model.layers.0.mlp.up_proj"
    expected = model.host.get_submodule(weight)
    assert torch.equal(back.host.get_submodule(weight).grid.zeros, expected.grid.zeros)


def test_zeros_between_codes_are_stored_as_numbers(make_quantized, tmp_path):
    # Methods of one's own may put zero anywhere: half-quadratic quantization searches for it.
    model = make_quantized("llada", "rtn", "w3a16-g16")
    for place, part in enumerate(model.linears().values()):
        codes = codes_of(part.weight, part.grid)
        part.grid.zeros.fill_(2.25) if place == 0 else part.grid.zeros.add_(0.375)
        part.weight.copy_(weight_of(codes, part.grid, part.weight.dtype))
    save_quantized(model, tmp_path / "out")
    back = load_model(str(tmp_path / "out"), device="cpu")
    assert torch.equal(back.logits(IDS), model.logits(IDS))
    with pytest.raises(InputError, match="a grid on which zero is no code"):
        save_quantized(model, tmp_path / "theirs", layout="compressed-tensors")


def test_the_recipe_says_how_to_do_it_again(make_quantized, tmp_path):
    model = make_quantized("llada", "gptq", "w3a16-g16", damping=0.05)
    save_quantized(model, tmp_path / "out")
    recipe = read_manifest(tmp_path / "out").recipe
    assert (recipe.method, recipe.scheme, recipe.seed) == ("gptq", "w3a16-g16-asym", 0)
    assert dict(recipe.parameters)["damping"] == 0.05
    assert recipe.calibration_tokens.startswith("8 sequences of 64 token ids, SHA-256 ")
    assert len(recipe.model_digest) == 64
    assert dict(recipe.versions)["torch"] == torch.__version__
    again = make_quantized("llada", "gptq", "w3a16-g16", **dict(recipe.parameters))
    assert torch.equal(again.logits(IDS), model.logits(IDS))


def test_the_model_card_tells_recipe_size_and_loading(make_quantized, tmp_path):
    model = make_quantized("llada", "awq", "w4a16-g32", skip_modules=["*.1.mlp.*"])
    save_quantized(model, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert 'load_model("out")' in card
    assert "| parameter grid_points | `20` |" in card
    assert "| parameter search_clip | `null` |" in card
    assert '| parameter skip_modules | `["*.1.mlp.*"]` |' in card
    assert "| `mlp.up_proj` | 0, 2 | 4, asymmetric, groups of 32 | 16 |" in card
    assert "- 4.625 bits a quantized weight" in card
    assert "- 5.125 bits a packed weight" in card
