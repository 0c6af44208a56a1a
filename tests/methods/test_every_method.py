"""What holds for each method, on models of both shapes."""

import pytest
import torch

from dllm_sweep.methods import build, quantize
from dllm_sweep.quant.linear import QuantLinear
from dllm_sweep.spec import QuantScheme

IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
METHODS = {
    "rtn": {},
    "gptq": {},
    "awq": {"grid_points": 3, "clip_steps": 4},
    "smoothquant": {"groups": "all"},
    "quarot": {"mse_clip": False},
    "duquant": {"steps": 6},
}
FAMILIES = ("make_small_llada", "make_small_dream")


def scheme_of(method, bits):
    # AWQ rounds weights alone, SmoothQuant never without activations.
    return f"w{bits}a16" if method == "awq" else f"w{bits}a8"


@pytest.fixture(params=FAMILIES)
def make(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_all_linears_and_nothing_else_is_quantized_and_every_position_sees_the_last(
    method, make, make_batches
):
    model, training = make(), make().host.training
    quantize(
        model,
        method=method,
        scheme=scheme_of(method, 4),
        calibration=make_batches(8),
        **METHODS[method],
    )
    quantized = {n for n, part in model.host.named_modules() if isinstance(part, QuantLinear)}
    assert quantized == set(model.linears())
    assert tuple(row.module for row in model.quantization_report.modules) == tuple(model.linears())
    assert model.host.training is training
    assert not any(part._forward_pre_hooks for part in model.host.modules())
    assert not any(parameter.requires_grad for parameter in model.host.parameters())
    other = IDS.clone()
    other[:, -1] = (other[:, -1] + 1) % 50 + 2
    assert not torch.equal(model.logits(other)[:, 0], model.logits(IDS)[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_are_nearer_to_full_precision(method, make, make_batches):
    expected, errors = make().logits(IDS), []
    for bits in (8, 4, 2):
        model = make()
        batches, scheme = make_batches(), scheme_of(method, bits)
        quantize(model, method=method, scheme=scheme, calibration=batches, **METHODS[method])
        errors.append((model.logits(IDS) - expected).norm().item())
    assert errors == sorted(errors)
    assert errors[0] < 0.2 * errors[-1]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_and_text_give_the_same_bits(method, make, make_batches):
    chosen, scheme = build(method, METHODS[method]), QuantScheme.parse(scheme_of(method, 3))
    logits = []
    for _ in range(2):
        model = make()
        chosen.quantize(model, scheme, make_batches(8), seed=5)
        logits.append(model.logits(IDS))
    assert torch.equal(*logits)


@pytest.mark.parametrize("method", ["awq", "smoothquant", "duquant"])
def test_how_the_text_is_cut_into_batches_hardly_matters(method, make, make_batches):
    logits = []
    for size in (16, 5):
        model = make()
        batches, scheme = make_batches(16, size), scheme_of(method, 8)
        quantize(model, method=method, scheme=scheme, calibration=batches, **METHODS[method])
        logits.append(model.logits(IDS))
    difference = (logits[0] - logits[1]).norm() / logits[0].norm()
    assert difference <= 1e-3
