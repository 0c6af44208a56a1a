"""What a search measures: outputs on recorded calls, each token as much as it counts."""

import pytest
import torch

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.capture import BlockInputs, Call, capture_first_block
from dllm_sweep.quant.hessian import Hessian
from dllm_sweep.quant.output_error import LinearError, ModuleError, TokenSummary, inspect
from dllm_sweep.quant.scale_search import search_scales


def batches(x, weights=None, cut=1):
    """(B, L, n) in batches of `cut` sequences; weights (B, L)."""
    parts = list(x.split(cut))
    each = [None] * len(parts) if weights is None else list(weights.split(cut))
    return BlockInputs(hidden=parts, keywords=[{} for _ in parts], weights=each)


def summary(x, weights=None, cut=1, count=1000):
    inputs = batches(x, weights, cut)
    found = TokenSummary.of_some(inputs, count)
    for hidden, each in zip(inputs.hidden, inputs.weights, strict=True):
        found.add(hidden, each)
    return found


def module_error(linear, x, weights=None, cut=1):
    inputs = batches(x, weights, cut)
    calls = [Call(hidden=hidden, keywords={}) for hidden in inputs.hidden]
    return ModuleError(module=linear, calls=calls, weights=inputs.weights)


def linear_error(linear, x, weights=None, cut=1):
    kept = torch.ones(x.shape[:2]) if weights is None else weights
    return LinearError(Hessian.over(x[kept > 0], kept[kept > 0]))


ERRORS = (module_error, linear_error)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 5).requires_grad_(False)
    linear.weight.data = torch.randn(5, 6, generator=generator)
    changed = linear.weight + 0.1 * torch.randn(5, 6, generator=generator)
    return linear, changed, torch.randn(8, 7, 6, generator=generator)


@pytest.mark.parametrize("kind", ERRORS)
def test_the_error_is_the_mean_square_over_tokens_and_outputs(kind, layer):
    linear, changed, x = layer
    error = kind(linear, x)
    expected = (x @ (changed - linear.weight).T).double().square().mean()
    assert error.with_weights([linear], [changed]) == pytest.approx(expected.item(), rel=1e-5)
    assert error.with_weights([linear], [linear.weight]) == 0


@pytest.mark.parametrize("kind", ERRORS)
def test_a_weight_of_two_is_a_token_seen_twice_and_none_one_never_seen(kind, layer):
    linear, changed, x = layer
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0]).expand(8, 7)
    twice = x[:, [1, 2, 2, 3, 5, 6, 6]]
    errors = [
        kind(linear, *given).with_weights([linear], [changed]) for given in ((x, weights), (twice,))
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    first, second = summary(x, weights), summary(twice)
    torch.testing.assert_close(first.mean_magnitude(), second.mean_magnitude())
    torch.testing.assert_close(first.sample().square().sum(0), second.sample().square().sum(0))


@pytest.mark.parametrize("kind", ERRORS)
def test_what_padding_holds_does_not_matter_not_even_a_nan(kind, layer):
    linear, changed, x = layer
    weights = torch.ones(8, 7)
    weights[:, -2:] = 0
    other = x.clone()
    other[:, -2:] = torch.nan
    first, second = summary(x, weights, count=16), summary(other, weights, count=16)
    assert torch.equal(first.mean_magnitude(), second.mean_magnitude())
    assert torch.equal(first.sample(), second.sample())
    errors = [kind(linear, one, weights).with_weights([linear], [changed]) for one in (x, other)]
    assert errors[0] == errors[1] > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_and_samples_do_not_depend_on_how_batches_are_cut(weighted, layer):
    _, _, x = layer
    weights = torch.rand(8, 7, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    first, *others = (summary(x, weights if weighted else None, cut, 10) for cut in (1, 3, 8))
    for other in others:
        assert torch.equal(other.mean_magnitude(), first.mean_magnitude())
        assert torch.equal(other.sample(), first.sample())


def test_a_sample_is_evenly_spaced():
    tokens = torch.arange(1024.0).reshape(8, 128, 1)
    assert torch.equal(summary(tokens, count=512).sample(), tokens.reshape(-1, 1)[::2])
    assert torch.equal(summary(tokens, cut=3, count=60).sample(), tokens.reshape(-1, 1)[::17])
    assert torch.equal(summary(tokens[:1, :10], count=512).sample(), tokens[0, :10])


def test_weights_are_put_back_even_if_the_module_fails(layer):
    linear, _, x = layer
    original = linear.weight
    with pytest.raises(RuntimeError):
        module_error(linear, x).with_weights([linear], [torch.zeros(5, 7)])
    assert linear.weight is original


def test_text_without_a_token_that_counts_and_activations_that_overflow_are_named(layer):
    linear, changed, x = layer
    with pytest.raises(QuantizationError, match="no token"):
        summary(x, torch.zeros(8, 7)).mean_magnitude()
    broken = x.clone()
    broken[0, 0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"inputs are not finite.*bfloat16 or float32"):
        summary(broken).mean_magnitude()
    error = module_error(linear, broken)
    with pytest.raises(QuantizationError, match="no number"):
        search_scales(torch.ones(6), lambda scales: error.with_weights([linear], [changed]))


def test_a_ratio_whose_loss_is_no_number_is_passed_over():
    losses = iter([3.0, torch.nan, 2.0, torch.inf])
    found = search_scales(torch.ones(4), lambda scales: next(losses), grid_points=4)
    assert (found.ratio, found.loss, found.rounding_loss) == (0.5, 2.0, 3.0)


def test_both_ways_to_measure_agree_on_a_linear_within_a_block(make_small_dream, make_batches):
    model = make_small_dream()
    block, inputs = model.blocks[0], capture_first_block(model, make_batches(padding=6))
    group = model.family.linear_groups[3]
    alone = inspect(block, group, inputs, search_on="module", sample=64)
    linear, seen = block.mlp.down_proj, []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for hidden, keywords in zip(inputs.hidden, inputs.keywords, strict=True):
        block(hidden, **keywords)
    hook.remove()
    calls = [Call(hidden=x, keywords={}) for x in seen]
    module = ModuleError(module=linear, calls=calls, weights=inputs.weights)
    changed = [linear.weight * 1.01]
    errors = [one.with_weights([linear], changed) for one in (alone.error, module)]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
