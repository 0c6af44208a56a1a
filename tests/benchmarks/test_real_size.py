import json

import pytest
import real_checkpoints
import real_size
import torch
from click.testing import CliRunner

from dllm_sweep import load_model
from dllm_sweep.tiny.network import Network

PUBLISHED = real_checkpoints.PUBLISHED


@pytest.mark.parametrize(("name", "weights"), [("llada", 8_015_581_184), ("dream", 7_615_616_512)])
def test_shapes_have_as_many_weights_as_the_published_models(name, weights):
    with torch.device("meta"):
        network = Network(PUBLISHED[name].shape)
    assert sum(weight.numel() for weight in network.parameters()) == weights


@pytest.fixture(params=PUBLISHED)
def checkpoint(request, tmp_path):
    small = real_checkpoints.small(PUBLISHED[request.param])
    folder = tmp_path / request.param
    size = real_checkpoints.make_checkpoint(folder, small, seed=0, device="cpu", shard_bytes=10**5)
    return request.param, folder, size


def test_a_small_checkpoint_of_many_shards_is_loaded_as_its_family(checkpoint):
    name, folder, size = checkpoint
    shards = list(folder.glob("*.safetensors"))
    assert len(shards) > 3
    assert size < sum(shard.stat().st_size for shard in shards) < 1.1 * size
    model = load_model(str(folder), device="cpu")
    assert model.family.name == name
    assert model.special.mask_id == real_checkpoints.small(PUBLISHED[name]).special["mask_token_id"]
    assert 0.01 < float(model.host.lm_head.weight.std()) < 0.03


def test_both_paths_agree_in_float32_at_a_tiny_size(checkpoint, tmp_path):
    name, folder, _ = checkpoint
    out = tmp_path / "rows.json"
    options = ["--check", "--family", name, "--checkpoints", str(folder.parent), "--out", str(out)]
    run = CliRunner().invoke(real_size.main, options)
    assert run.exit_code == 0, run.output
    rows = json.loads(out.read_text())["rows"]
    assert {row["path"] for row in rows} >= {"cold", "authors", "plain", "exact savings"}
    assert {"quantize rtn w4a16-g128", "quantize gptq w4a16-g128"} <= {row["what"] for row in rows}


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = CliRunner().invoke(real_size.main, [])
    assert run.exit_code == 1
    assert "no GPU" in run.output
