"""The folder of a saved model: damaged ones are refused, others' files are never overwritten."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dllm_sweep import load_model, quantize, save_quantized
from dllm_sweep.errors import CheckpointError, InputError, QuantizationError
from dllm_sweep.manifest import MANIFEST, WEIGHTS
from dllm_sweep.models.load import weight_bytes
from dllm_sweep.saving.folder import LAYOUTS
from tests.saving.conftest import DATA


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model = quantize(load_model(str(DATA / "llada-random"), device="cpu"), scheme="w4a16")
    return save_quantized(model, tmp_path_factory.mktemp("saved") / "out").folder


@pytest.fixture
def folder(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "out"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whoever_may_read_the_card_may_read_the_weights(layout, make_quantized, tmp_path):
    save_quantized(make_quantized("llada", "rtn", "w4a16"), tmp_path / "out", layout=layout)
    modes = {file.name: file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {modes["config.json"]}


def remove_weights(folder):
    (folder / WEIGHTS).unlink()


def flip_a_bit(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-50] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def cut_the_manifest(folder):
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(text[: len(text) // 2])


def change_the_manifest(folder, **changes):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def name_a_later_format(folder):
    change_the_manifest(folder, format=2)


def add_an_unknown_key(folder):
    change_the_manifest(folder, seasoning="salt")


def change_the_configuration(folder):
    config = json.loads((folder / "config.json").read_text()) | {"mlp_hidden_size": 128}
    (folder / "config.json").write_text(json.dumps(config))


def lose_a_tensor(folder):
    from dllm_sweep.models.locate import file_digest

    tensors = load_file(folder / WEIGHTS)
    del tensors["model.layers.0.mlp.up_proj.scales"]
    save_file(tensors, folder / WEIGHTS)
    file = json.loads((folder / MANIFEST).read_text())["file"]
    change_the_manifest(folder, file=file | {"sha256": file_digest(folder / WEIGHTS)})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_weights, "quantized.safetensors is missing: copy the whole folder"),
        (flip_a_bit, "quantized.safetensors is damaged: its SHA-256"),
        (cut_the_manifest, "dllm_sweep.json is damaged"),
        (name_a_later_format, "has format 2, this version of dllm-sweep reads format 1"),
        (add_an_unknown_key, "dllm_sweep.json is damaged .*seasoning"),
        (change_the_configuration, "does not fit what lies beside it .*mlp"),
        (lose_a_tensor, "does not fit what lies beside it .*up_proj.scales"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(damage, message, folder):
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_what_is_in_the_way_is_never_overwritten(folder, make_quantized):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(InputError, match="is there already"):
        save_quantized(make_quantized("llada", "rtn", "w4a16"), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_failure_leaves_nothing_behind(make_quantized, tmp_path):
    model = make_quantized("llada", "rtn", "w4a16")
    model.host.model.layers[2].mlp.down_proj.weight += 0.01
    with pytest.raises(QuantizationError, match=r"layers.2.mlp.down_proj: .*not on the grid"):
        save_quantized(model, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_what_is_not_quantized_is_not_saved(tmp_path):
    model = load_model(str(DATA / "llada-random"), device="cpu")
    with pytest.raises(InputError, match="was not quantized"):
        save_quantized(model, tmp_path / "out")
    with pytest.raises(InputError, match="layout 'zip' is not known"):
        save_quantized(model, tmp_path / "out", layout="zip")
    assert not (tmp_path / "out").exists()


def test_planning_counts_the_weights_that_are_unpacked(folder):
    whole = weight_bytes(str(DATA / "llada-random"), dtype="bfloat16")
    assert weight_bytes(str(folder), dtype="bfloat16") == whole
