import pytest
import torch
from torch import nn

from dllm_sweep.kernels.fake_quantize_tokens import reference
from dllm_sweep.methods.rtn import quantize_weight
from dllm_sweep.quant.affine import WeightGrid
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_with_16_bit_activations_it_is_bit_for_bit_a_linear(dtype, bias):
    plain = nn.Linear(24, 10, bias=bias, dtype=dtype)
    quantized = QuantLinear(plain.weight.detach(), plain.bias.detach() if bias else None)
    x = torch.randn(3, 7, 24, dtype=dtype)
    assert torch.equal(quantized(x), plain(x))


def test_its_input_is_rounded_token_by_token():
    plain = nn.Linear(24, 10)
    activation = ActivationQuantization(bits=4, symmetric=False, clip_ratio=0.9)
    quantized = QuantLinear(plain.weight.detach(), plain.bias.detach(), activation)
    x = torch.randn(3, 7, 24)
    rounded = reference(x, bits=4, symmetric=False, clip_ratio=0.9)
    assert torch.equal(quantized(x), plain(rounded))
    assert not torch.equal(quantized(x), plain(x))


def test_its_weights_are_no_parameters_and_its_text_says_the_bits():
    quantized = QuantLinear(torch.zeros(4, 8), None, ActivationQuantization(bits=6))
    assert list(quantized.parameters()) == []
    assert "in_features=8, out_features=4, a_bits=6" in repr(quantized)


def test_a_change_of_type_leaves_the_grid_as_it_is():
    weight = torch.randn(4, 8)
    result = quantize_weight(weight, bits=4)
    grid = WeightGrid.of(result.grid)
    half = QuantLinear(result.dequantized, grid=grid).to(torch.float16)
    assert half.weight.dtype == torch.float16
    assert half.grid.scales.dtype == torch.float32
    assert torch.equal(half.grid.scales, grid.scales)
