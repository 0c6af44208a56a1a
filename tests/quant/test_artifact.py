import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dllm_sweep.errors import StoreError
from dllm_sweep.methods import quantize
from dllm_sweep.quant import artifact
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.quant.packing import codes_of
from dllm_sweep.spec import QuantScheme

IDS = torch.arange(2, 34)[None]


@pytest.fixture
def saved(small_llada, tmp_path):
    quantize(small_llada, method="rtn", scheme="w4a6-g16", skip_modules=["*.o_proj"])
    file = tmp_path / "deep" / "weights.safetensors"
    modules = small_llada.quantization_report.modules
    made = artifact.save(small_llada, file, scheme=QuantScheme.parse("w4a6-g16"), modules=modules)
    return small_llada, file, made


def test_a_restored_model_predicts_bit_for_bit_the_same(saved, make_small_llada):
    model, file, made = saved
    fresh = make_small_llada()
    rows = artifact.load(fresh, file, sha256=made.sha256)
    assert torch.equal(fresh.logits(IDS), model.logits(IDS))
    assert rows == model.quantization_report.modules


def test_a_restored_linear_knows_its_grid(saved, make_small_llada):
    model, file, _ = saved
    fresh = make_small_llada()
    artifact.load(fresh, file)
    for before, after in zip(model.linears().values(), fresh.linears().values(), strict=True):
        if isinstance(before, QuantLinear):
            assert torch.equal(after.grid.scales, before.grid.scales)
            assert torch.equal(
                codes_of(after.weight, after.grid), codes_of(before.weight, before.grid)
            )


FAST = {
    "rtn": ("w4a6-g8", {}),
    "gptq": ("w3a16", {}),
    "awq": ("w3a16-g8", {"grid_points": 4, "clip_steps": 4}),
    "smoothquant": ("w4a4", {"groups": "all"}),
    "quarot": ("w4a4", {"mse_clip": False}),
    "duquant": ("w4a4", {"steps": 4}),
}
SCATTERED = {"static_groups": False, "activation_order": True}


@pytest.mark.parametrize("family", ["make_small_llada", "make_small_dream"])
@pytest.mark.parametrize("method", FAST)
def test_everything_that_a_method_changed_comes_back(
    family, method, request, make_batches, tmp_path
):
    make = request.getfixturevalue(family)
    scheme, parameters = FAST[method]
    parameters = {"skip_modules": ["*.1.mlp.gate_proj"], **parameters}
    model, fresh = make(), make()
    quantize(model, method=method, scheme=scheme, calibration=make_batches(), **parameters)
    file = tmp_path / "weights.safetensors"
    artifact.save(model, file, modules=model.quantization_report.modules)
    rows = artifact.load(fresh, file)
    assert torch.equal(fresh.logits(IDS), model.logits(IDS))
    assert rows == model.quantization_report.modules
    again = tmp_path / "again.safetensors"
    assert artifact.save(fresh, again, modules=rows).bytes == file.stat().st_size


def test_one_block_is_put_back_and_the_others_stay(make_small_llada, make_batches, tmp_path):
    model, fresh = make_small_llada(layers=3), make_small_llada(layers=3)
    # Layers with a common input share which group each input is in.
    quantize(model, scheme="w4a6-g16", method="gptq", calibration=make_batches(), **SCATTERED)
    rows = model.quantization_report.modules[7:14]
    file = tmp_path / "block"
    told = {"modules": rows, "warnings": ("too little text",)}
    artifact.BlockContent.of(model, 1, **told).write(file)
    assert artifact.load_block(fresh, file) == (rows, ("too little text",))
    quantized = [name for name, part in fresh.linears().items() if isinstance(part, QuantLinear)]
    assert quantized == [row.module for row in rows]
    again = tmp_path / "again"
    artifact.BlockContent.of(fresh, 1, **told).write(again)
    assert again.read_bytes() == file.read_bytes()


def test_a_file_of_the_first_format_still_loads(saved, make_small_llada):
    model, file, _ = saved
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["dllm_sweep"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    older = {key: header[key] for key in ("scheme", "activations", "modules")}
    older["format"] = "dllm-sweep quantized weights 1"
    save_file(tensors, file, metadata={"dllm_sweep": json.dumps(older)})
    fresh = make_small_llada()
    assert artifact.load(fresh, file) == model.quantization_report.modules
    assert torch.equal(fresh.logits(IDS), model.logits(IDS))


def test_the_record_tells_digest_and_size_and_nothing_else_is_left(saved):
    _, file, made = saved
    content = file.read_bytes()
    assert made.sha256 == hashlib.sha256(content).hexdigest()
    assert (made.kind, made.path, made.bytes) == ("weights", str(file), len(content))
    assert list(file.parent.iterdir()) == [file]


def damage_the_end(content):
    return content[:-100]


def damage_one_bit(content):
    return content[:-50] + bytes([content[-50] ^ 1]) + content[-49:]


@pytest.mark.parametrize("damage", [damage_the_end, damage_one_bit])
def test_a_damaged_file_is_refused_and_nothing_is_changed(saved, make_small_llada, damage):
    _, file, made = saved
    file.write_bytes(damage(file.read_bytes()))
    fresh = make_small_llada()
    before = fresh.logits(IDS)
    with pytest.raises(StoreError, match="damaged"):
        artifact.load(fresh, file, sha256=made.sha256)
    assert torch.equal(fresh.logits(IDS), before)


def test_a_truncated_file_is_refused_even_without_a_digest(saved, make_small_llada):
    _, file, _ = saved
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match="does not hold quantized weights"):
        artifact.load(make_small_llada(), file)


def test_a_missing_file_and_a_file_of_another_model_are_refused(saved, make_small_llada, tmp_path):
    _, file, made = saved
    with pytest.raises(StoreError, match="missing"):
        artifact.load(make_small_llada(), tmp_path / "none", sha256=made.sha256)
    with pytest.raises(StoreError, match=r"another model: it holds model\.layers\.1"):
        artifact.load(make_small_llada(layers=1), file, sha256=made.sha256)


def test_a_write_that_fails_leaves_nothing_behind(small_llada, tmp_path, monkeypatch):
    quantize(small_llada, method="rtn", scheme="w4a16")

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(artifact.os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        artifact.save(small_llada, tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []
