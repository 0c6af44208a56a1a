"""Modules that repeat what they gave."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional

from dllm_sweep.methods import layerwise, quantize
from dllm_sweep.quant.replay import replaying


def test_after_one_round_the_outputs_come_again_in_turn_without_running():
    module = nn.Linear(2, 2)
    inputs = [torch.randn(3, 2) for _ in range(4)]
    expected = [module(x) for x in inputs]
    with replaying(module, len(inputs)):
        first = [module(x) for x in inputs]
        module.weight.data.zero_()
        second = [module(x) for x in inputs]
    for one, two, right in zip(first, second, expected, strict=True):
        assert torch.equal(one, right)
        assert two is one
    assert not module(inputs[0]).equal(expected[0])


def test_a_module_is_itself_again_after_a_failure():
    module = nn.Identity()
    with pytest.raises(RuntimeError, match="stop"), replaying(module, 1):
        raise RuntimeError("stop")
    assert "forward" not in vars(module)


@pytest.mark.parametrize("output_first", [False, True])
def test_gptq_gives_the_same_bits_with_fewer_runs_of_attention(
    output_first, make_small_llada, make_batches, monkeypatch
):
    attention, runs = functional.scaled_dot_product_attention, []

    def counted_attention(*args, **keywords):
        runs.append(1)
        return attention(*args, **keywords)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted_attention)

    def solve():
        runs.clear()
        model = make_small_llada()
        options = {"scheme": "w3a16-g16", "calibration": make_batches()}
        quantize(model, method="gptq", output_first=output_first, **options)
        return [part.weight for part in model.linears().values()], len(runs)

    weights, few = solve()
    monkeypatch.setattr(layerwise, "replaying", lambda *_: contextlib.nullcontext())
    expected, many = solve()
    assert all(torch.equal(one, two) for one, two in zip(weights, expected, strict=True))
    assert few < many
