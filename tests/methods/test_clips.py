"""How much of a range a grid should span depends on its bits: cutting it at eight only hurts."""

import pytest
import torch

from dllm_sweep.kernels.fake_quantize_tokens import fake_quantize_tokens
from dllm_sweep.methods import build
from dllm_sweep.methods.rtn import quantize_weight
from dllm_sweep.quant.affine import GridFamily
from dllm_sweep.quant.greedy_rotation import rotate_permute_rotate, spreading_rotations
from dllm_sweep.quant.rotation import random_hadamard
from dllm_sweep.quant.transforms import Scaling
from dllm_sweep.spec import QuantScheme

RATIOS = (1.0, 0.99, 0.97, 0.95, 0.9, 0.85, 0.8)
CHANNELS = 256


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outlying():
    x = torch.randn(400, CHANNELS, generator=generator())
    x[:, :6] *= 30
    return x


def transform_of(method, x):
    if method == "quarot":
        return random_hadamard(CHANNELS, generator())
    if method == "duquant":
        return rotate_permute_rotate(x, spreading_rotations(64, 24, generator())[None])
    return Scaling(x.abs().amax(0).sqrt())


def best_ratio(errors):
    return min(errors, key=errors.__getitem__)


@pytest.mark.parametrize("method", ["quarot", "duquant", "smoothquant"])
def test_the_usual_clips_of_activations_are_near_the_best_for_the_bits(method):
    chosen, x = build(method), outlying()
    x = transform_of(method, x)(x)
    for bits in (4, 8):
        usual = chosen.usual_activation_clip(bits)
        errors = {
            ratio: (
                fake_quantize_tokens(
                    x, bits=bits, symmetric=chosen.activation_symmetric, clip_ratio=ratio
                )
                - x
            ).norm()
            for ratio in RATIOS
        }
        assert errors[usual] <= 1.3 * errors[best_ratio(errors)]
        if bits == 8:
            assert min(best_ratio(errors), usual) >= 0.97
            assert errors[0.9] > 2 * errors[1.0]
        elif method != "smoothquant":
            assert errors[usual] < errors[1.0]


def test_clipping_the_weights_of_whole_rows_at_eight_bits_makes_the_error_several_times_larger():
    weight = torch.randn(64, CHANNELS, generator=generator(1))
    errors = {
        ratio: (
            quantize_weight(
                weight, bits=8, family=GridFamily.ASYMMETRIC, clip_ratio=ratio
            ).dequantized
            - weight
        ).norm()
        for ratio in RATIOS
    }
    assert best_ratio(errors) >= 0.97
    assert errors[0.8] > 5 * errors[1.0]


@pytest.mark.parametrize("method", ["quarot", "duquant", "smoothquant"])
@pytest.mark.parametrize("bits", [5, 6, 8])
def test_nothing_is_clipped_by_default_above_four_bits(method, bits):
    chosen = build(method)
    scheme = QuantScheme.parse(f"w{bits}a{bits}-kv{bits}")
    assert chosen.usual_weight_clip(scheme) == 1.0
    assert chosen.usual_activation_clip(bits) == 1.0
    assert chosen.usual_operand_clip(bits) == 1.0


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_methods_without_clips_of_their_own_clip_nothing(method):
    assert build(method).activation_clip == 1.0
