"""One model on two GPUs: the whole work gives what it gives on one."""

import pytest
import torch

from dllm_sweep import load_model
from dllm_sweep.decoding import generate, log_likelihood
from dllm_sweep.kernels.fake_quantize_tokens import launch
from dllm_sweep.methods import quantize
from dllm_sweep.models.cache import KeyValueCache
from dllm_sweep.outlier_study import outliers
from dllm_sweep.spec import CalibrationSpec, DecodingSpec, OutlierSpec, TaskSpec

pytestmark = pytest.mark.gpu

BOTH = ("cuda:0", "cuda:1")
TEXT = CalibrationSpec(samples=16, length=64)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def models(request):
    """The model on one GPU and on two."""
    return [load_model("llada-tiny", device=d, dtype=request.param) for d in ("cuda:0", BOTH)]


@pytest.fixture
def loaded():
    """Both again, to be quantized."""
    return [load_model("llada-tiny", device=d, dtype="float32") for d in ("cuda:0", BOTH)]


def devices_of(model):
    return [next(block.parameters()).device.index for block in model.blocks]


def same_linears(first, second):
    pairs = zip(first.linears().values(), second.linears().values(), strict=True)
    return all(torch.equal(a.weight.cpu(), b.weight.cpu()) for a, b in pairs)


def test_both_gpus_hold_blocks_and_logits_come_out_on_the_first(models):
    numbers = devices_of(models[1])
    assert set(numbers) == {0, 1}
    assert numbers == sorted(numbers)
    assert models[1].logits(torch.arange(8, device="cuda:0")[None]).device.index == 0


def test_logits_are_those_of_one_gpu_with_and_without_padding(models):
    ids = torch.arange(48, device="cuda:0").reshape(2, 24)
    shown = torch.ones_like(ids)
    shown[1, 16:] = 0
    for mask in (None, shown):
        one, two = (model.logits(ids, mask) for model in models)
        assert torch.equal(one, two)


def test_logits_at_positions_and_with_a_cache_are_those_of_one_gpu(models):
    ids = torch.arange(48, device="cuda:0").reshape(2, 24)
    shown = torch.ones_like(ids)
    shown[1, :8] = 0
    positions = torch.arange(13, 16, device="cuda:0").expand(2, -1)
    passes = []
    for model in models:
        cache = KeyValueCache()
        at_once = model.logits_at(ids, positions, shown)
        filled = model.logits_cached(ids, positions, shown, cache=cache)
        part = model.logits_cached(ids[:, 12:16], positions, shown, cache=cache, start=12)
        passes.append(torch.stack((at_once, filled, part)))
    assert torch.equal(*passes)


def test_answers_and_likelihoods_are_those_of_one_gpu(models):
    prompts = [[200, 201, 202], [203, 204]]
    one, two = (
        (
            generate(model, prompts, gen_length=16, steps=8, block_length=8),
            log_likelihood(model, [(p, [300, 301]) for p in prompts], draws=4),
        )
        for model in models
    )
    assert one == two


def test_outliers_are_those_of_one_gpu(models):
    one, two = (outliers(model, spec=OutlierSpec(text=TEXT)) for model in models)
    assert one == two


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_quantized_weights_are_those_of_one_gpu(loaded, method):
    one, two = (
        quantize(model, method=method, scheme="w4a8-asym", calibration=TEXT) for model in loaded
    )
    assert devices_of(two) == devices_of(loaded[1])
    assert same_linears(one, two)
    ids = torch.arange(24, device="cuda:0")[None]
    assert torch.equal(one.logits(ids), two.logits(ids))


def test_a_kernel_runs_where_its_tensors_are():
    activations = torch.randn(64, 256, device="cuda:0", generator=torch.Generator("cuda:0"))
    options = {"bits": 8, "symmetric": True, "clip_ratio": 1.0}
    first = launch(activations, **options)
    for _ in range(20):
        assert torch.equal(launch(activations.to("cuda:1"), **options).cpu(), first.cpu())


@pytest.mark.parametrize("task", ["tiny_facts", "tiny_math"])
def test_scores_are_those_of_one_gpu(models, task):
    from dllm_sweep.evaluation.evaluate import evaluate_task

    spec, decoding = TaskSpec(name=task, limit=16, draws=2), DecodingSpec(steps=4)
    one, two = (evaluate_task(model, spec, decoding, seed=0, batch_size=8) for model in models)
    assert one == two


def test_quantized_weights_go_to_a_file_and_back_onto_both_gpus(loaded, tmp_path):
    from dllm_sweep.quant import artifact

    quantized, fresh = quantize(loaded[0], method="rtn", scheme="w4a16-asym"), loaded[1]
    artifact.save(quantized, tmp_path / "weights.safetensors")
    artifact.load(fresh, tmp_path / "weights.safetensors")
    ids = torch.arange(24, device="cuda:0")[None]
    assert torch.equal(quantized.logits(ids), fresh.logits(ids))


def test_a_model_that_was_let_go_leaves_no_memory_behind(tmp_path):
    from dllm_sweep.workers import devices
    from dllm_sweep.workers.messages import WorkerOptions

    options = WorkerOptions(files=tmp_path, device="cuda", threads=1, batch_size=8, gpus=2.0)
    names = devices.prepare(options)
    assert names == BOTH
    model = load_model("llada-tiny", device=names, dtype="float32")
    devices.reset_peak(names)
    model.logits(torch.arange(8, device="cuda:0")[None])
    assert devices.peak_bytes(names) > 0
    del model
    assert not devices.give_back(names)
    devices.refuse_busy(names, 2**20)
