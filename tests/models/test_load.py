import json
import shutil
import socket

import pytest
import torch
from safetensors.torch import save_file

from dllm_sweep import load_model
from dllm_sweep.errors import CheckpointError, InputError, UnknownName
from dllm_sweep.models.load import check_bidirectional


def load(folder, **options):
    return load_model(str(folder), device="cpu", **options)


def test_a_sharded_checkpoint_gives_the_same_logits_as_a_single_file(write_checkpoint):
    ids = torch.arange(20)[None]
    whole = load(write_checkpoint()).logits(ids)
    folder = write_checkpoint(shards=3)
    (folder / "model.safetensors").unlink()
    assert torch.equal(load(folder).logits(ids), whole)


def test_a_missing_tensor_is_named(write_checkpoint):
    name = "model.transformer.blocks.1.ff_out.weight"
    folder = write_checkpoint(change=lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=r"1 missing: model\.transformer\.blocks\.1\.ff_out"):
        load(folder)


def test_an_unknown_tensor_is_named(write_checkpoint):
    extra = {"model.transformer.blocks.0.q_proj.bias": torch.zeros(48)}
    folder = write_checkpoint(change=lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r"1 unexpected: .*q_proj\.bias"):
        load(folder)


def test_a_block_beyond_the_last_one_is_unexpected(write_checkpoint):
    extra = {"model.transformer.blocks.2.attn_norm.weight": torch.ones(48)}
    folder = write_checkpoint(change=lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match=r"unexpected: .*blocks\.2\.attn_norm"):
        load(folder)


def test_a_tensor_in_two_shards_is_named(write_checkpoint):
    folder = write_checkpoint(shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    again = {"model.transformer.ln_f.weight": torch.ones(48)}
    save_file(again, folder / "extra.safetensors")
    index["weight_map"]["model.transformer.other.weight"] = "extra.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"given more than once: model\.transformer\.ln_f"):
        load(folder)


def test_two_spellings_of_one_tensor_are_refused(write_checkpoint):
    extra = {"model.transformer.blocks.01.attn_norm.weight": torch.ones(48)}
    folder = write_checkpoint(change=lambda tensors: tensors.update(extra))
    with pytest.raises(CheckpointError, match="more than once"):
        load(folder)


def test_a_wrong_shape_is_named_with_both_shapes(write_checkpoint):
    name = "model.transformer.blocks.0.ff_proj.weight"
    folder = write_checkpoint(change=lambda tensors: tensors.update({name: torch.zeros(81, 48)}))
    with pytest.raises(CheckpointError, match=r"ff_proj.weight is \(81, 48\), expected \(80, 48\)"):
        load(folder)


def test_a_missing_shard_is_named(write_checkpoint):
    folder = write_checkpoint(shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        load(folder)


def test_a_truncated_file_is_named(write_checkpoint):
    folder = write_checkpoint()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a readable"):
        load(folder)


def test_weights_in_another_format_are_refused(write_checkpoint):
    folder = write_checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors"):
        load(folder)


def test_integer_weights_are_refused(write_checkpoint):
    name = "model.transformer.blocks.0.q_proj.weight"
    packed = {name: torch.zeros(48, 48, dtype=torch.int8)}
    folder = write_checkpoint(change=lambda tensors: tensors.update(packed))
    with pytest.raises(CheckpointError, match="int8, not a float"):
        load(folder)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_not_numbers_are_refused(write_checkpoint, value):
    name = "model.transformer.blocks.0.q_proj.weight"
    folder = write_checkpoint(change=lambda tensors: tensors[name][7, 3:4].fill_(float(value)))
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is not finite"):
        load(folder)


def test_an_unknown_model_type_is_named_with_the_known_ones(write_checkpoint):
    folder = write_checkpoint(model_type="gpt2")
    with pytest.raises(CheckpointError, match=r"'gpt2' is not supported \(supported: .*llada"):
        load(folder)


def test_a_token_id_outside_the_vocabulary_is_refused(write_checkpoint):
    with pytest.raises(CheckpointError, match="token id 96"):
        load(write_checkpoint(mask_token_id=96))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"pad_token_id": [3]}, "pad_token_id"),
        ({"eos_token_id": []}, "has no eos_token_id"),
        ({"mask_token_id": True}, "token id True"),
        ({"rope_theta": "large"}, "cannot be loaded"),
    ],
)
def test_a_value_of_the_wrong_type_in_config_is_one_line(write_checkpoint, options, what):
    with pytest.raises(CheckpointError, match=what) as refused:
        load(write_checkpoint(**options))
    assert "config.json" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_written_out_ratio_of_the_feed_forward_may_be_a_float(write_checkpoint):
    folder = write_checkpoint(mlp_hidden_size=192, drop=("mlp_hidden_size",), mlp_ratio=4.0)
    assert load(folder).host.config.intermediate_size == 192


@pytest.mark.parametrize("places", [None, [], {}])
def test_an_index_without_files_is_refused(write_checkpoint, places):
    folder = write_checkpoint(shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(CheckpointError, match="no weight_map"):
        load(folder)


def test_a_vocabulary_of_eight_tokens_passes_the_self_test(write_checkpoint):
    options = {"vocab_size": 8, "embedding_size": 8, "mask_token_id": 7}
    assert load(write_checkpoint(**options, eos_token_id=6, pad_token_id=6)).special.mask_id == 7


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(tmp_path)


def test_a_broken_config_is_refused(write_checkpoint):
    folder = write_checkpoint()
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        load(folder)


def test_an_unknown_dtype_is_refused_with_the_known_ones(write_checkpoint):
    with pytest.raises(InputError, match="bfloat16"):
        load(write_checkpoint(), dtype="int4")


def test_rotary_frequencies_stay_in_float32(write_checkpoint):
    model = load(write_checkpoint(), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert model.host.model.rotary_emb.inv_freq.dtype == torch.float32
    exact = 10000.0 ** (-torch.arange(0, 12, 2) / 12)
    assert torch.allclose(model.host.model.rotary_emb.inv_freq, exact, rtol=1e-6)


def test_a_bfloat16_checkpoint_runs_in_float32_on_a_cpu(write_checkpoint):
    def shrink(tensors):
        tensors.update({name: value.bfloat16() for name, value in tensors.items()})

    assert load(write_checkpoint(change=shrink)).dtype == torch.float32


def test_a_weight_too_large_for_the_type_is_refused(write_checkpoint):
    name = "model.transformer.blocks.0.q_proj.weight"
    folder = write_checkpoint(change=lambda tensors: tensors[name][7, 3:4].fill_(1e6))
    load(folder)
    with pytest.raises(CheckpointError, match=r"q_proj\.weight is not finite in torch\.float16"):
        load(folder, dtype="float16")


def test_a_family_may_be_named(write_checkpoint):
    folder = write_checkpoint(model_type="something-derived")
    with pytest.raises(CheckpointError, match="something-derived"):
        load(folder)
    assert load(folder, family="llada").family.name == "llada"
    with pytest.raises(UnknownName, match="lada"):
        load(folder, family="lada")


def test_every_position_sees_every_other(model):
    ids = torch.arange(12)[None]
    changed = ids.clone()
    changed[0, -1] = 77
    assert not torch.equal(model.logits(ids)[0, 0], model.logits(changed)[0, 0])


def test_a_block_called_on_its_own_is_bidirectional(model):
    """Layer-wise calibration calls blocks without the model's masks around them."""
    states = torch.randn(1, 10, 64, generator=torch.Generator().manual_seed(0))
    rotary = model.host.model.rotary_emb(states, torch.arange(10)[None])
    changed = states.clone()
    changed[0, -1] += 1

    def first(inputs):
        out = model.blocks[0](inputs, position_embeddings=rotary)
        return (out[0] if isinstance(out, tuple) else out).reshape(10, 64)[0]

    assert not torch.equal(first(states), first(changed))


def test_causal_attention_is_noticed(write_checkpoint):
    model = load(write_checkpoint())
    model.host.config.is_causal = True
    for block in model.blocks:
        block.self_attn.is_causal = True
    with pytest.raises(CheckpointError, match="causal"):
        check_bidirectional(model)


def test_a_folder_without_tokenizer_files_loads_for_token_ids(write_checkpoint):
    assert load(write_checkpoint()).tokenizer is None


def test_a_tokenizer_that_needs_foreign_code_is_refused(write_checkpoint, capsys):
    folder = write_checkpoint()
    names = {"tokenizer_class": "Foreign", "auto_map": {"AutoTokenizer": ["foreign.Foreign", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    (folder / "foreign.py").write_text("raise SystemExit('ran')")
    with pytest.raises(CheckpointError, match="without running code"):
        load(folder)


def test_the_checkpoints_folder_is_left_as_it_was(write_checkpoint):
    folder = write_checkpoint()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    load(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_hub_model_without_a_network_is_one_clear_line(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    def unplugged(*_, **__):
        raise OSError("the network is unplugged")

    monkeypatch.setattr(socket.socket, "connect", unplugged)
    with pytest.raises(CheckpointError, match="'nobody/nothing@v1' is neither") as caught:
        load_model("nobody/nothing@v1", device="cpu")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_nothing_is_unknown():
    with pytest.raises(UnknownName, match="unknown model 'lada-tiny'"):
        load_model("lada-tiny", device="cpu")


def test_a_copied_folder_loads_from_its_new_place(model, tmp_path):
    folder = tmp_path / "with space"
    shutil.copytree(model.name, folder)
    ids = torch.arange(9)[None]
    assert torch.equal(load(folder).logits(ids), model.logits(ids))
