"""Logits at some positions, kept keys and values, and loading, on one GPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dllm_sweep import load_model
from dllm_sweep.models.cache import KeyValueCache
from tests.models.conftest import ILLADA, SDAR, random_qwen_tensors, write_folder

pytestmark = pytest.mark.gpu

DATA = Path(__file__).parents[1] / "data"
BOUNDS = {"float32": 1e-4, "bfloat16": 3e-2}
"""Relative: kernels of other shapes round otherwise, in bfloat16 visibly so."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    written = {
        config["model_type"]: write_folder(
            tmp_path_factory.mktemp(config["model_type"]), config, random_qwen_tensors(config), 2
        )
        for config in (SDAR, ILLADA)
    }
    return {"llada": DATA / "llada-random", "dream": DATA / "dream-random", **written}


@pytest.fixture(params=BOUNDS)
def dtype(request):
    return request.param


@pytest.fixture(params=["llada", "dream", "sdar", "illada"])
def model(request, folders, dtype):
    return load_model(str(folders[request.param]), device="cuda", dtype=dtype)


@pytest.fixture(params=[(0, 0, 0), (0, 4, 8)], ids=["equal", "padded"])
def batch(request):
    ids = torch.randint(0, 90, (3, 48), generator=torch.Generator().manual_seed(0)).cuda()
    shown = torch.ones_like(ids)
    for row, padding in enumerate(request.param):
        shown[row, :padding] = 0
    return ids, shown


def relative_error(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def at(logits, positions):
    return logits.gather(1, positions[..., None].expand(-1, -1, logits.shape[2]))


def check(found, expected, dtype):
    assert relative_error(found.float(), expected.float()) < BOUNDS[dtype]
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9


def test_logits_at_positions_are_those_of_the_whole(model, batch, dtype):
    ids, shown = batch
    positions = torch.arange(17, 32, device="cuda").expand(3, -1)
    check(model.logits_at(ids, positions, shown), at(model.logits(ids, shown), positions), dtype)


def test_while_nothing_changes_the_caches_are_exact(model, batch, dtype):
    (ids, shown), cache = batch, KeyValueCache()
    positions = torch.arange(17, 32, device="cuda").expand(3, -1)
    expected = at(model.logits(ids, shown), positions)
    check(model.logits_cached(ids, positions, shown, cache=cache), expected, dtype)
    for part in (ids[:, 16:], ids[:, 16:32]):
        found = model.logits_cached(part, positions, shown, cache=cache, start=16)
        check(found, expected, dtype)


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "illada"])
def test_a_gpu_computes_what_a_cpu_computes(folders, batch, name):
    (ids, shown), real = batch, batch[1].cpu().bool()
    model, on_cpu = (
        load_model(str(folders[name]), device=device, dtype="float32") for device in ("cuda", "cpu")
    )
    found, expected = model.logits(ids, shown).cpu(), on_cpu.logits(ids.cpu(), shown.cpu())
    assert relative_error(found[real], expected[real]) < 1e-4


def test_shards_arrive_bit_for_bit(folders):
    model = load_model(str(folders["sdar"]), device="cuda")
    assert model.dtype == torch.float32
    stored = {
        name: value
        for file in folders["sdar"].glob("*.safetensors")
        for name, value in load_file(file).items()
    }
    found = {name: value.cpu() for name, value in model.host.state_dict().items()}
    assert all(torch.equal(found[name], value) for name, value in stored.items())
