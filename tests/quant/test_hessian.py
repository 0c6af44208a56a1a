"""Second moments over tokens that count differently."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.methods.layerwise import collect_hessians
from dllm_sweep.quant.capture import capture_first_block, visit_inputs
from dllm_sweep.quant.hessian import Hessian


def tokens(count=40, inputs=6, seed=0):
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=25)
@given(weights=st.lists(st.floats(0.01, 10), min_size=2, max_size=12), seed=st.integers(0, 1000))
def test_a_weighted_hessian_is_the_sum_over_tokens_by_the_sum_of_weights(weights, seed):
    x, w = tokens(len(weights), seed=seed).double(), torch.tensor(weights, dtype=torch.float64)
    expected = 2 * (x.T * w) @ x / w.sum()
    split = len(weights) // 2
    found = Hessian.over(x[:split].float(), w[:split].float())
    found.add(x[split:].float(), w[split:].float())
    assert torch.allclose(found.mean().double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.total, found.total.T)
    assert found.tokens == len(weights)


def test_a_token_of_weight_two_counts_as_if_it_were_there_twice():
    x = tokens()
    twice = Hessian.over(torch.cat((x, x[:10])))
    weights = torch.ones(40)
    weights[:10] = 2
    weighted = Hessian.over(x, weights)
    assert torch.allclose(weighted.mean(), twice.mean(), rtol=1e-5, atol=1e-6)
    assert (weighted.tokens, weighted.weight) == (40, 50)


def test_one_weight_for_all_changes_nothing():
    x = tokens()
    plain, scaled = Hessian.over(x), Hessian.over(x, torch.full((40,), 4.0))
    assert torch.equal(plain.mean(), scaled.mean())


def test_hessians_of_a_block_leave_tokens_of_weight_zero_out_and_weigh_the_others(
    small_llada, make_batches
):
    batches = make_batches(8, 4, padding=5)
    inputs = capture_first_block(small_llada, batches)
    inputs.weights = [weights * 0.5 for weights in inputs.weights]
    inputs.weights[0][:, 0] = 2.0
    inputs.weights[1][1] = 0.0
    block, name = small_llada.blocks[0], "mlp.down_proj"
    seen = []
    visit_inputs(block, [name], inputs, lambda _, x, __: seen.append(x.flatten(0, 1).double()))
    x, w = torch.cat(seen), torch.cat([part.flatten() for part in inputs.weights]).double()
    (found,) = collect_hessians(block, [name], inputs).values()
    assert torch.allclose(found.mean().double(), 2 * (x.T * w) @ x / w.sum(), rtol=1e-4, atol=1e-6)
    assert found.tokens == int((w > 0).sum())
