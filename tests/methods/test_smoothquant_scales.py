"""SmoothQuant's scales on layers nobody has seen, beside the formula written down once more, and
what they do to the error of 8-bit products."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError
from dllm_sweep.kernels.fake_quantize_tokens import fake_quantize_tokens
from dllm_sweep.methods import quantize
from dllm_sweep.methods.rtn import quantize_weight
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.input_statistics import input_statistics
from dllm_sweep.quant.smoothing import smooth, smoothing_scales
from dllm_sweep.quant.transforms import Scaling

FAMILIES = ("make_small_llada", "make_small_dream")
IDS = torch.randint(2, 60, (2, 32), generator=torch.Generator().manual_seed(3))
ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DECIDING = {
    "all": (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)),
    "first": (("q_proj",), ("o_proj",), ("up_proj",), ("down_proj",)),
}


def formula(activations, weights, alpha):
    """The authors', in numpy: (n,) from maxima (n,)."""
    scales = activations**alpha / np.maximum(weights, 1e-5) ** (1 - alpha)
    return np.maximum(scales, 1e-5)


def weights_of(block, names):
    parts = {name.rpartition(".")[2]: part for name, part in block.named_modules()}
    return np.abs(np.concatenate([parts[name].weight.double().numpy() for name in names]))


def inputs_of(model, name, batches):
    """The greatest absolute inputs of a linear of the first block, over a plain forward pass."""
    seen = []
    linear = model.blocks[0].get_submodule(name)
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches:
        model.logits(batch.input_ids)
    hook.remove()
    return torch.cat(seen).flatten(0, 1).abs().amax(0).double().numpy()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0, 1), tail=st.sampled_from([1.2, 3.0]))
def test_scales_are_those_of_the_formula(seed, alpha, tail):
    rng = np.random.default_rng(seed)
    activations, weights = np.abs(rng.standard_t(tail, (2, 24)))
    weights[rng.integers(24)] = 0
    scales = smoothing_scales(torch.tensor(activations), torch.tensor(weights), alpha)
    np.testing.assert_allclose(scales.numpy(), formula(activations, weights, alpha), rtol=1e-5)


@pytest.mark.parametrize("scale_from", DECIDING)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_of_a_model_gets_them(family, scale_from, request, make_batches):
    model, plain = (request.getfixturevalue(family)() for _ in range(2))
    batches, chosen = make_batches(count=4), set(model.linears())
    statistics = input_statistics(model, batches)
    smooth(model, statistics, alpha=0.6, norms_only=False, chosen=chosen, scale_from=scale_from)
    for group, deciding in zip(model.family.linear_groups, DECIDING[scale_from], strict=True):
        first = group.linears[0]
        weights = weights_of(plain.blocks[0], deciding).max(0)
        expected = formula(inputs_of(plain, first, batches), weights, 0.6)
        before, after = (one.blocks[0].get_submodule(first) for one in (plain, model))
        np.testing.assert_allclose(
            (after.weight[0] / before.weight[0]).numpy(), expected, rtol=1e-5
        )
        if getattr(after, "transform", None) is not None:
            assert isinstance(after.transform, Scaling)
            assert (family, first) == ("make_small_dream", "self_attn.o_proj")


def product_error(weight, x, scales):
    """What rounding both to 8 bits does to x W^T, relative, with x / s and W s."""
    rounded = quantize_weight(weight * scales, bits=8, family=GridFamily.SYMMETRIC_RESTRICTED)
    tokens = fake_quantize_tokens(x / scales, bits=8, symmetric=True, clip_ratio=1.0)
    product = x @ weight.T
    return ((tokens @ rounded.dequantized.T - product).norm() / product.norm()).item()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), outlier=st.floats(20, 100), count=st.integers(1, 4))
def test_with_outlier_channels_it_beats_rounding_at_8_bits(seed, outlier, count):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(48, 64, generator=generator) * 0.05
    x = torch.randn(128, 64, generator=generator)
    x[:, torch.randperm(64, generator=generator)[:count]] *= outlier
    plain = product_error(weight, x, torch.ones(64))
    maxima = x.abs().amax(0), weight.abs().amax(0)
    errors = {a: product_error(weight, x, smoothing_scales(*maxima, a)) for a in ALPHAS}
    assert errors[0.5] <= plain
    assert min(errors.values()) < plain


@pytest.mark.parametrize("family", FAMILIES)
def test_some_alpha_beats_rounding_in_a_whole_model_with_massive_channels(
    family, request, make_batches
):
    make, batches = request.getfixturevalue(family), make_batches()

    def with_outliers():
        model = make(layers=1)
        for norm in (model.blocks[0].input_layernorm, model.blocks[0].post_attention_layernorm):
            norm.weight.data[[3, 11]] *= 40
        return model

    def distance(model):
        return (model.logits(IDS) - with_outliers().logits(IDS)).norm()

    plain = distance(quantize(with_outliers(), method="rtn", scheme="w8a8-sym"))
    smoothed = [
        distance(
            quantize(
                with_outliers(), method="smoothquant", scheme="w8a8", calibration=batches, alpha=a
            )
        )
        for a in ALPHAS[::2]
    ]
    assert min(smoothed) < plain


def test_a_tied_head_stays_tied_and_a_dead_channel_changes_nothing(make_small_dream, make_batches):
    plain, model = make_small_dream(tied=True), make_small_dream(tied=True)
    for one in (plain, model):
        one.blocks[0].input_layernorm.weight.data[5] = 0
    statistics = input_statistics(model, make_batches(count=4))
    smooth(model, statistics, alpha=0.8, norms_only=False, chosen=set(model.linears()))
    assert model.host.lm_head.weight is model.host.model.embed_tokens.weight
    before, after = (one.blocks[0].self_attn.q_proj.weight[:, 5] for one in (plain, model))
    assert torch.equal(before, after)
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_inputs_that_cannot_be_divided_beforehand_may_be_left_alone(make_small_dream, make_batches):
    plain, model = make_small_dream(), make_small_dream()
    statistics = input_statistics(model, make_batches(count=4))
    chosen = set(model.linears())
    smooth(model, statistics, alpha=0.5, norms_only=False, chosen=chosen, online=False)
    before, after = (one.blocks[0] for one in (plain, model))
    assert torch.equal(before.self_attn.o_proj.weight, after.self_attn.o_proj.weight)
    assert not torch.equal(before.mlp.down_proj.weight, after.mlp.down_proj.weight)
    expected = plain.logits(IDS)
    assert (model.logits(IDS) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_loses_no_more_than_it_has(family, dtype, request, make_batches):
    make = request.getfixturevalue(family)
    plain, model, exact = make(dtype=dtype), make(dtype=dtype), make()
    statistics = input_statistics(model, make_batches(count=4))
    smooth(model, statistics, alpha=0.5, norms_only=False, chosen=set(model.linears()))
    expected = exact.logits(IDS)
    errors = [(one.logits(IDS) - expected).norm() for one in (plain, model)]
    assert errors[1] <= 2 * errors[0]


def test_what_does_not_fit_half_precision_is_refused_with_what_to_do(
    make_small_llada, make_batches
):
    name = "model.layers.0.self_attn.q_proj"
    model = make_small_llada(dtype=torch.float16)
    statistics = dict(input_statistics(make_small_llada(), make_batches(count=4)))
    for largest, reason in ((3e11, "weight is not finite in torch.float16"), (torch.inf, "inputs")):
        magnitude = torch.full_like(statistics[name].largest, largest)
        broken = statistics | {name: dataclasses.replace(statistics[name], largest=magnitude)}
        with pytest.raises(QuantizationError, match=rf"{name}: .*{reason}.*bfloat16 or float32"):
            smooth(model, broken, alpha=1.0, norms_only=True, chosen=set(model.linears()))


@pytest.mark.parametrize("family", FAMILIES)
def test_how_the_text_is_cut_moves_next_to_no_code(family, request, make_batches):
    models = [request.getfixturevalue(family)() for _ in range(3)]
    for model, size in zip(models, (4, 4, 7), strict=True):
        batches = make_batches(16, size, padding=5)
        quantize(model, method="smoothquant", scheme="w4a8", calibration=batches, groups="all")
    pairs = [[model.linears()[name].weight for model in models] for name in models[0].linears()]
    for first, again, other in pairs:
        assert torch.equal(first, again)
        step = first.abs().amax(1, keepdim=True) / 7
        assert ((first - other).abs() > step / 2).double().mean() <= 0.005
