"""AWQ's searches against a plain implementation of the authors', on layers nobody has seen."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.methods import awq, build, quantize
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.capture import capture_first_block
from dllm_sweep.quant.output_error import inspect
from dllm_sweep.quant.scale_search import clip, round_scaled, search_clip, search_scales
from tests.methods import plain_awq

FAMILIES = ("make_small_llada", "make_small_dream")
SCALES_WITHIN, LOSS_WITHIN = 1e-4, 1e-3
INPUTS, TOKENS = 32, 96
layers = given(
    seed=st.integers(0, 10_000),
    bits=st.sampled_from([2, 3, 4, 8]),
    group_size=st.sampled_from([None, 8, 16]),
    tail=st.sampled_from([1.5, 3.0, 50.0]),
    massive=st.sampled_from([1.0, 30.0, 1000.0]),
)


def unseen_layer(seed, tail, massive):
    """Heavy-tailed weights (12, n) of both signs in every group; correlated inputs (T, n) with
    outlier channels and, in some tokens, massive values."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_t(tail, (12, INPUTS)) * 0.05
    weight[:, ::8], weight[:, 1::8] = np.abs(weight[:, ::8]), -np.abs(weight[:, 1::8])
    x = rng.standard_normal((TOKENS, INPUTS)) @ rng.standard_normal((INPUTS, INPUTS)) * 0.2
    x *= np.exp(rng.standard_normal(INPUTS))
    x[rng.integers(TOKENS, size=2), rng.integers(INPUTS)] *= massive
    return weight.astype(np.float32), x.astype(np.float32)


def output_error(weight, x):
    return lambda changed: float(np.mean((x @ (changed - weight).T.astype(np.float64)) ** 2))


def ours(weight, x, bits, group_size, family=GridFamily.ASYMMETRIC):
    weight, error = torch.from_numpy(weight), output_error(weight, x)
    grid = {"bits": bits, "group_size": group_size, "family": family}
    return search_scales(
        torch.from_numpy(np.abs(x).astype(np.float64).mean(0)),
        lambda scales: error(round_scaled(weight, scales, **grid).numpy()),
    )


def theirs(weight, x, bits, group_size):
    error, magnitude = output_error(weight, x), np.abs(x).mean(0)
    return plain_awq.search_scales(
        [weight], magnitude, lambda one: error(one[0]), bits=bits, group_size=group_size
    )


@settings(max_examples=25, deadline=None)
@layers
def test_scales_or_losses_are_those_of_the_authors_search(seed, bits, group_size, tail, massive):
    weight, x = unseen_layer(seed, tail, massive)
    found = ours(weight, x, bits, group_size)
    scales, loss, rounding = theirs(weight, x, bits, group_size)
    assert found.rounding_loss == pytest.approx(rounding, rel=LOSS_WITHIN)
    same = np.allclose(found.scales.numpy(), scales, rtol=SCALES_WITHIN, atol=0)
    assert same or found.loss == pytest.approx(loss, rel=LOSS_WITHIN)


@settings(max_examples=25, deadline=None)
@layers
def test_clipping_costs_what_the_authors_does(seed, bits, group_size, tail, massive):
    weight, x = unseen_layer(seed, tail, massive)
    grid = {"bits": bits, "group_size": group_size}
    given_to_us = torch.from_numpy(weight), torch.from_numpy(x)
    bounds = search_clip(*given_to_us, **grid, family=GridFamily.ASYMMETRIC)
    clipped, plain = clip(given_to_us[0], bounds), plain_awq.search_clip(weight, x, **grid)
    error = output_error(weight, x)
    rounded = [plain_awq.rounded(one, bits, group_size) for one in (clipped.numpy(), plain)]
    assert error(rounded[0]) == pytest.approx(error(rounded[1]), rel=LOSS_WITHIN)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4]), dead=st.integers(1, 12))
def test_inputs_that_are_always_zero_cost_nothing_beside_the_authors(seed, bits, dead):
    weight, x = unseen_layer(seed, 3.0, 30.0)
    x[:, :dead] = 0
    assert ours(weight, x, bits, 16).loss <= theirs(weight, x, bits, 16)[1] * (1 + LOSS_WITHIN)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.sampled_from([2, 3, 4]), shift=st.floats(0.5, 4))
def test_groups_to_one_side_of_zero_lose_less_than_with_the_authors(seed, bits, shift):
    weight, x = unseen_layer(seed, 50.0, 1.0)
    weight = (weight + shift).astype(np.float32)
    assert ours(weight, x, bits, 16).loss <= theirs(weight, x, bits, 16)[1]


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_groups_so_small_that_some_have_one_sign_lose_nothing_by_a_grid_with_zero(bits):
    ratios = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        weight = rng.standard_normal((64, 64)).astype(np.float32)
        x = rng.standard_normal((256, 64)) * np.exp(rng.standard_normal(64))
        given_to_both = weight, x.astype(np.float32), bits, 8
        ratios.append(ours(*given_to_both).loss / theirs(*given_to_both)[1])
    assert np.mean(ratios) <= 1
    assert max(ratios) <= 1.002


@settings(max_examples=25, deadline=None)
@layers
def test_no_grid_family_ever_loses_to_rounding(seed, bits, group_size, tail, massive):
    weight, x = unseen_layer(seed, tail, massive)
    for family in GridFamily:
        found = ours(weight, x, bits, group_size, family)
        assert found.loss <= found.rounding_loss


@pytest.mark.parametrize("family", FAMILIES)
def test_every_group_of_a_block_gets_the_authors_scales(family, request, make_batches):
    model, plain = (request.getfixturevalue(family)() for _ in range(2))
    grid = {"bits": 3, "group_size": 8, "family": GridFamily.ASYMMETRIC}
    batches = make_batches(count=4)
    search = awq._Search(build("awq"), model, frozenset(model.linears()), grid)
    search.scale(0, capture_first_block(model, batches))
    for group in model.family.linear_groups:
        source, first = plain.blocks[0].get_submodule(group.source), group.linears[0]
        name = first.rpartition(".")[0] if source.weight.ndim == 1 else first
        before, after = (one.blocks[0].get_submodule(first).weight[0] for one in (plain, model))
        if len(source.weight) == len(before):
            scales, _, _ = _from_a_plain_forward(plain, name, group.linears, batches)
            np.testing.assert_allclose((after / before).numpy(), scales, rtol=SCALES_WITHIN)
        else:  # grouped queries: seven inputs share a channel
            assert torch.equal(after, before)


def _from_a_plain_forward(model, name, linears, batches):
    """Search as the authors do, on what the module `name` is called with in the whole model."""
    block = model.blocks[0]
    module, calls = block.get_submodule(name), []
    hook = module.register_forward_pre_hook(
        lambda _, args, keywords: calls.append((args, keywords)), with_kwargs=True
    )
    for batch in batches:
        model.logits(batch.input_ids)
    hook.remove()

    def outputs(of):
        results = [of(*args, **keywords) for args, keywords in calls]
        return torch.cat([one[0] if isinstance(one, tuple) else one for one in results]).double()

    changed, expected = copy.deepcopy(module), outputs(module)
    paths = [linear.removeprefix(name).removeprefix(".") for linear in linears]
    parts = [changed.get_submodule(path) for path in paths]
    weights = [block.get_submodule(linear).weight.numpy() for linear in linears]

    def loss(rounded):
        for part, weight in zip(parts, rounded, strict=True):
            part.weight.data = torch.from_numpy(weight).float()
        return float((outputs(changed) - expected).square().mean())

    read = torch.cat([(args or (keywords["hidden_states"],))[0] for args, keywords in calls])
    magnitude = read.flatten(0, 1).abs().double().mean(0).numpy()
    return plain_awq.search_scales(weights, magnitude, loss, bits=3, group_size=8)


@pytest.mark.parametrize(("search_on", "around"), [("module", "{parent}"), ("block", "")])
def test_the_error_of_linears_behind_a_norm_is_searched_where_it_shows(
    search_on, around, make_small_llada, make_batches
):
    model = make_small_llada()
    block, inputs = model.blocks[0], capture_first_block(model, make_batches(count=4))
    names = {module: name for name, module in block.named_modules()}
    for group, parent in zip(model.family.linear_groups[::2], ("self_attn", "mlp"), strict=True):
        seen = inspect(block, group, inputs, search_on=search_on, sample=8)
        assert names[seen.error.module] == around.format(parent=parent)


def test_the_studys_search_calls_the_whole_block_with_what_the_linears_read(
    make_small_dream, make_batches
):
    model = make_small_dream()
    block, inputs = model.blocks[0], capture_first_block(model, make_batches(count=4))
    group = model.family.linear_groups[2]
    (call,) = inspect(block, group, inputs, search_on="block", sample=8).error.calls
    hidden = inputs.hidden[0]
    attended = hidden + block.self_attn(block.input_layernorm(hidden), **inputs.keywords[0])[0]
    assert torch.equal(call.hidden, block.post_attention_layernorm(attended))
    assert call.keywords.keys() == inputs.keywords[0].keys()


def test_searching_on_the_block_gives_other_scales_of_the_same_function(
    make_small_llada, make_batches
):
    weights = []
    for search_on in ("module", "block"):
        model = make_small_llada()
        options = {"search_on": search_on, "search_clip": False}
        quantize(model, method="awq", scheme="w2a16-g16", calibration=make_batches(), **options)
        weights.append(model.blocks[0].input_layernorm.weight)
    assert not torch.equal(*weights)
