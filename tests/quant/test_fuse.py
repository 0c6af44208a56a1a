"""Scales and rotations move into neighbouring weights without changing what is computed."""

import pytest
import torch
from torch import nn

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.fuse import (
    RewrittenParameter,
    divide_outputs,
    fold_inputs,
    fuse_norm,
    multiply_inputs,
    rewrite,
    takes_output_scales,
    transform_online,
    transform_outputs,
)
from dllm_sweep.quant.rotation import in_float64
from dllm_sweep.quant.transforms import Chain, Hadamard, Scaling

X = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))


def linear(inputs=8, outputs=8, seed=1):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(inputs, outputs).requires_grad_(False)


def test_scales_pass_from_a_linear_with_a_bias_to_the_next():
    first, second = linear(), linear(seed=2)
    expected = second(first(X))
    scales = torch.linspace(0.1, 9, 8)
    assert takes_output_scales(first, 8)
    assert not takes_output_scales(first, 16)
    divide_outputs(first, scales)
    multiply_inputs([second], scales)
    torch.testing.assert_close(second(first(X)), expected)
    assert isinstance(first.bias, RewrittenParameter)


def test_a_norms_weight_passes_to_what_reads_it():
    norm, reader = nn.RMSNorm(8, eps=1e-6).requires_grad_(False), linear()
    norm.weight.data = torch.linspace(0.5, 2, 8)
    expected = reader(norm(X))
    fuse_norm(norm, [reader])
    assert (norm.weight == 1).all()
    torch.testing.assert_close(reader(norm(X)), expected)


def test_a_rotation_passes_between_linears_with_their_biases():
    first, second = linear(), linear(seed=2)
    expected = second(first(X))
    transform_outputs(first, Hadamard(8))
    fold_inputs(second, Hadamard(8))
    torch.testing.assert_close(second(first(X)), expected)


def test_transforms_online_follow_each_other():
    host = nn.Sequential(linear())
    expected = host(X)
    transform_online(host, "0", Scaling(torch.linspace(0.1, 9, 8)))
    transform_online(host, "0", Hadamard(8))
    assert isinstance(host[0].transform, Chain)
    torch.testing.assert_close(host(X), expected)


def test_the_old_tensor_stays_as_it_was_and_infinities_are_refused():
    layer = linear()
    old, copy = layer.weight, layer.weight.clone()
    multiply_inputs([layer], torch.full((8,), 2.0))
    assert torch.equal(old, copy)
    half = linear().half()
    with pytest.raises(QuantizationError, match=r"fused weight is not finite in torch\.float16"):
        rewrite(half, "weight", torch.full((8, 8), 1e6))


def test_a_module_is_in_float64_only_meanwhile_and_comes_back_bit_for_bit():
    layer = linear().bfloat16()
    layer.register_buffer("kept", torch.ones(3, dtype=torch.float16))
    before = layer.weight.clone()
    with in_float64(layer):
        assert layer.weight.dtype == layer.kept.dtype == torch.float64
    assert layer.weight.dtype == torch.bfloat16
    assert layer.kept.dtype == torch.float16
    assert torch.equal(layer.weight, before)
