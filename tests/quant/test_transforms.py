"""Changes of basis: orthogonal, exact on both sides of a product, and back from a file."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError, StoreError
from dllm_sweep.quant.hadamard import hadamard_factors, hadamard_matrix
from dllm_sweep.quant.linear import ActivationQuantization, QuantLinear, TransformedLinear
from dllm_sweep.quant.rotation import head_hadamard, random_hadamard, random_orthogonal
from dllm_sweep.quant.transforms import (
    BlockRotation,
    Chain,
    Hadamard,
    Permutation,
    Scaling,
    describe,
    restore,
)

PALEY = (12, 20, 28, 36, 44, 60, 108, 148, 368)
SIZES = (1, 2, 4, 12, 28, 32, 48, 112, 128, 192, 256, 296, 768, 3584, 4096, 12288, 18944)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def kinds(size):
    return [
        Scaling(torch.rand(size, generator=generator()) + 0.5),
        Hadamard(size),
        Hadamard(size // 4, inner=4),
        BlockRotation(random_orthogonal(size // 2, generator()).float()),
        Permutation(torch.randperm(size, generator=generator())),
        random_hadamard(size, generator()),
        Chain((random_hadamard(size, generator()), Chain((Permutation(torch.arange(size)),)))),
    ]


@pytest.mark.parametrize("order", [*PALEY, 1, 2, 4, 64])
def test_hadamard_matrices_are_exactly_orthogonal(order):
    matrix = hadamard_matrix(order).double()
    assert set(matrix.unique().tolist()) <= {-1.0, 1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize(
    ("size", "first"), [(12288, 12), (3584, 28), (28, 28), (18944, 148), (768, 12), (296, 148)]
)
def test_widths_of_real_models_are_cut_into_the_orders_that_exist(size, first):
    factors = hadamard_factors(size)
    assert factors[0] == first
    assert torch.tensor(factors).prod() == size
    assert all(order <= 64 for order in factors[1:])


@pytest.mark.parametrize("size", [3, 6, 10, 172])
def test_a_size_without_a_hadamard_matrix_is_named(size):
    with pytest.raises(QuantizationError, match=f"order {size} "):
        Hadamard(size)
    with pytest.raises(QuantizationError, match="order 92 "):
        hadamard_matrix(92)


@pytest.mark.parametrize("size", SIZES)
def test_hadamard_transforms_keep_products_and_spread_every_channel_evenly(size):
    transform = Hadamard(size)
    x = torch.randn(2, size, generator=generator(1))
    w = torch.randn(3, size, generator=generator(2))
    exact = x.double() @ w.double().T
    error = (transform(x) @ transform.fold(w).T - exact).abs().max() / exact.abs().max()
    assert error <= 1e-5
    unit = torch.zeros(size, dtype=torch.float64)
    unit[size // 2] = 1
    spread = transform(unit).abs()
    torch.testing.assert_close(spread, torch.full_like(spread, size**-0.5), rtol=1e-6, atol=0)


def test_the_transform_is_the_kronecker_product_of_its_factors():
    whole = Hadamard(48)(torch.eye(48, dtype=torch.float64)) * 48**0.5
    expected = torch.kron(hadamard_matrix(12).double(), hadamard_matrix(4).double()).T
    torch.testing.assert_close(whole, expected)
    across = Hadamard(4, inner=3)(torch.eye(12, dtype=torch.float64)) * 2
    expected = torch.kron(hadamard_matrix(4).double(), torch.eye(3, dtype=torch.float64)).T
    torch.testing.assert_close(across, expected)


def test_within_and_across_heads_is_the_transform_of_all_channels():
    x = torch.randn(5, 28 * 4, generator=generator())
    parts = Hadamard(28, inner=4)(head_hadamard(4)(x))
    torch.testing.assert_close(parts, Hadamard(112)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", range(7))
def test_folding_undoes_what_is_done_to_the_input(number):
    transform = kinds(48)[number]
    x = torch.randn(2, 5, 48, generator=generator(1))
    w = torch.randn(7, 48, generator=generator(2))
    expected = x @ w.T
    got = transform(x) @ transform.fold(w).T
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("number", range(7))
def test_a_described_transform_comes_back_bit_for_bit(number):
    transform = kinds(48)[number]
    again = restore(describe(transform), dict(transform.state_dict()))
    x = torch.randn(4, 48, generator=generator(1))
    assert torch.equal(again(x), transform(x))
    assert describe(again) == describe(transform)
    assert again.storage_bits() == transform.storage_bits()


def test_a_transform_of_another_version_is_refused():
    with pytest.raises(StoreError, match="'wavelet' is not known"):
        restore({"kind": "wavelet"}, {})


def test_a_transform_of_a_class_of_ones_own_is_refused_when_it_is_described():
    class Wavelet(Hadamard):
        pass

    with pytest.raises(QuantizationError, match="a Wavelet cannot be saved: build it from"):
        describe(Chain((Hadamard(4), Wavelet(4))))


def test_what_has_to_be_stored_is_counted():
    assert Hadamard(4096).storage_bits() == 0
    assert Scaling(torch.ones(10)).storage_bits() == 160
    assert BlockRotation(torch.eye(8)).storage_bits() == 1024
    assert Chain((Permutation(torch.arange(6)), Scaling(torch.ones(2)))).storage_bits() == 224


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([2, 4, 28, 64, 100]))
def test_random_rotations_are_orthogonal_and_depend_on_the_seed(seed, size):
    first = random_orthogonal(size, generator(seed))
    assert (first @ first.T - torch.eye(size, dtype=torch.float64)).abs().max() <= 1e-12
    assert torch.equal(first, random_orthogonal(size, generator(seed)))
    assert not torch.equal(first, random_orthogonal(size, generator(seed + 1)))


def test_half_precision_inputs_are_transformed_in_float32():
    x = torch.full((1, 18944), 60000.0, dtype=torch.float16)  # a plain sum would overflow
    out = Hadamard(18944)(x)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()
    layer = TransformedLinear(torch.zeros(2, 18944, dtype=torch.float16), None, Hadamard(18944))
    assert layer(x).dtype == torch.float16


def test_a_quantized_linear_transforms_its_input_before_rounding_it():
    x = torch.randn(30, 64, generator=generator())
    x[:, 2] = 20.0
    w = torch.randn(40, 64, generator=generator(1))
    transform = random_hadamard(64, generator(2))
    four_bits = ActivationQuantization(bits=4)
    plain = QuantLinear(w, None, four_bits)(x)
    rotated = QuantLinear(transform.fold(w), None, four_bits, transform)(x)
    exact = x @ w.T
    assert (rotated - exact).norm() < 0.5 * (plain - exact).norm()
    wide = QuantLinear(transform.fold(w), None, ActivationQuantization(), transform)(x)
    torch.testing.assert_close(wide, exact, rtol=1e-4, atol=1e-4)
