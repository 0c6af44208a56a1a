"""What a search measures: outputs on recorded calls, each token as much as it counts."""

import pytest
import torch

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.capture import Call, capture_first_block, record_calls
from dllm_sweep.quant.output_error import OutputError, RecordedInputs
from dllm_sweep.quant.scale_search import search_scales


def recorded(x, weights=None, cut=1):
    """(B, L, n) in batches of `cut` sequences; weights (B, L)."""
    parts = x.split(cut)
    each = [None] * len(parts) if weights is None else list(weights.split(cut))
    return RecordedInputs(calls=[Call(hidden=p, keywords={}) for p in parts], weights=each)


@pytest.fixture
def layer():
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(6, 5).requires_grad_(False)
    linear.weight.data = torch.randn(5, 6, generator=generator)
    changed = linear.weight + 0.1 * torch.randn(5, 6, generator=generator)
    return linear, changed, torch.randn(8, 7, 6, generator=generator)


def test_the_error_is_the_mean_square_over_tokens_and_outputs(layer):
    linear, changed, x = layer
    error = OutputError(linear, recorded(x)).with_weights([linear], [changed])
    expected = (x @ (changed - linear.weight).T).double().square().mean()
    assert error == pytest.approx(expected.item(), rel=1e-5)
    assert OutputError(linear, recorded(x)).with_weights([linear], [linear.weight]) == 0


def test_a_weight_of_two_is_a_token_seen_twice_and_none_one_never_seen(layer):
    linear, changed, x = layer
    weights = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0, 1.0, 2.0]).expand(8, 7)
    twice = x[:, [1, 2, 2, 3, 5, 6, 6]]
    weighted, plain = recorded(x, weights), recorded(twice)
    torch.testing.assert_close(weighted.mean_magnitude(), plain.mean_magnitude())
    errors = [
        OutputError(linear, one).with_weights([linear], [changed]) for one in (weighted, plain)
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    square = [one.sample(1000).square().sum(0) for one in (weighted, plain)]
    torch.testing.assert_close(*square)


def test_what_padding_holds_does_not_matter_not_even_a_nan(layer):
    linear, changed, x = layer
    weights = torch.ones(8, 7)
    weights[:, -2:] = 0
    other = x.clone()
    other[:, -2:] = torch.nan
    first, second = recorded(x, weights), recorded(other, weights)
    assert torch.equal(first.mean_magnitude(), second.mean_magnitude())
    assert torch.equal(first.sample(16), second.sample(16))
    errors = [OutputError(linear, one).with_weights([linear], [changed]) for one in (first, second)]
    assert errors[0] == errors[1] > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_statistics_and_samples_do_not_depend_on_how_batches_are_cut(weighted, layer):
    _, _, x = layer
    weights = torch.rand(8, 7, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    cuts = [recorded(x, weights if weighted else None, cut) for cut in (1, 3, 8)]
    for other in cuts[1:]:
        assert torch.equal(other.mean_magnitude(), cuts[0].mean_magnitude())
        assert torch.equal(other.sample(10), cuts[0].sample(10))


def test_a_sample_is_evenly_spaced():
    tokens = torch.arange(1024.0).reshape(8, 128, 1)
    assert torch.equal(recorded(tokens).sample(512), tokens.reshape(-1, 1)[::2])
    assert torch.equal(recorded(tokens[:1, :10]).sample(512), tokens[0, :10])


def test_weights_are_put_back_even_if_the_module_fails(layer):
    linear, _, x = layer
    error, original = OutputError(linear, recorded(x)), linear.weight
    with pytest.raises(RuntimeError):
        error.with_weights([linear], [torch.zeros(5, 7)])
    assert linear.weight is original


def test_text_without_a_token_that_counts_and_activations_that_overflow_are_named(layer):
    linear, changed, x = layer
    with pytest.raises(QuantizationError, match="no token"):
        recorded(x, torch.zeros(8, 7)).mean_magnitude()
    broken = x.clone()
    broken[0, 0, 0] = torch.inf
    with pytest.raises(QuantizationError, match=r"inputs are not finite.*bfloat16 or float32"):
        recorded(broken).mean_magnitude()
    error = OutputError(linear, recorded(broken))
    with pytest.raises(QuantizationError, match="no number"):
        search_scales(torch.ones(6), lambda scales: error.with_weights([linear], [changed]))


def test_a_ratio_whose_loss_is_no_number_is_passed_over():
    losses = iter([3.0, torch.nan, 2.0, torch.inf])
    found = search_scales(torch.ones(4), lambda scales: next(losses), grid_points=4)
    assert (found.ratio, found.loss, found.rounding_loss) == (0.5, 2.0, 3.0)


def test_one_part_of_a_block_is_measured_within_it(make_small_llada, make_batches):
    block = make_small_llada().blocks[0]
    inputs = capture_first_block(make_small_llada(), make_batches(padding=6))
    read = RecordedInputs(calls=record_calls(block, "mlp", inputs), weights=inputs.weights)
    error = OutputError(block.mlp, read)
    linears = [block.mlp.gate_proj, block.mlp.up_proj]
    assert read.channels == 32
    assert error.with_weights(linears, [one.weight for one in linears]) == 0
    assert error.with_weights(linears, [one.weight * 1.01 for one in linears]) > 0
