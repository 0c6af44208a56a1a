"""Whatever is put together of changes of basis keeps products, and comes back from a file."""

import json

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import QuantizationError
from dllm_sweep.quant.hadamard import hadamard_factors, hadamard_matrix, without_hadamard
from dllm_sweep.quant.rotation import random_hadamard, random_orthogonal
from dllm_sweep.quant.transforms import (
    BlockRotation,
    Chain,
    Hadamard,
    Permutation,
    Scaling,
    describe,
    restore,
)

PRIMES = [n for n in range(3, 400, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
PALEY = sorted(
    {q + 1 for q in PRIMES if q % 4 == 3} | {2 * (q + 1) for q in PRIMES if q % 4 == 1 and q < 200}
)
SIZE = 48


def generator(seed):
    return torch.Generator().manual_seed(seed)


def close(got, expected, tolerance=1e-5):
    return (got - expected).abs().max() <= tolerance * expected.abs().max()


def simple(kind, seed):
    random = generator(seed)
    return {
        "scaling": lambda: Scaling(torch.rand(SIZE, generator=random) * 4 + 0.1),
        "hadamard": lambda: Hadamard(SIZE),
        "across": lambda: Hadamard(12, inner=4),
        "signed": lambda: random_hadamard(SIZE, random),
        "blocks": lambda: BlockRotation(random_orthogonal(8, random).float()),
        "permutation": lambda: Permutation(torch.randperm(SIZE, generator=random)),
    }[kind]()


KINDS = ("scaling", "hadamard", "across", "signed", "blocks", "permutation")
parts = st.builds(simple, st.sampled_from(KINDS), st.integers(0, 10**6))
transforms = st.recursive(parts, lambda inner: st.lists(inner, max_size=3).map(Chain), max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(transform=transforms, seed=st.integers(0, 10**6))
def test_any_chain_keeps_products_and_is_restored_bit_for_bit(transform, seed):
    x = torch.randn(2, 3, SIZE, generator=generator(seed))
    weight = torch.randn(5, SIZE, generator=generator(seed + 1))
    assert close(transform(x) @ transform.fold(weight).T, x @ weight.T, 1e-4)
    double = transform(x.double()) @ transform.fold(weight.double()).T
    assert close(double, x.double() @ weight.double().T, 1e-5)
    described = json.loads(json.dumps(describe(transform)))
    again = restore(described, dict(transform.state_dict()))
    assert torch.equal(again(x), transform(x))
    assert torch.equal(again.fold(weight), transform.fold(weight))
    assert again.storage_bits() == transform.storage_bits()


@settings(max_examples=40, deadline=None)
@given(transform=parts.filter(lambda one: not isinstance(one, Scaling)), seed=st.integers(0, 10**6))
def test_all_but_scales_keep_lengths_and_treat_every_token_alike(transform, seed):
    x = torch.randn(6, SIZE, generator=generator(seed))
    assert close(transform(x).norm(dim=1), x.norm(dim=1))
    order = torch.randperm(6, generator=generator(seed))
    torch.testing.assert_close(transform(x[order]), transform(x)[order], rtol=1e-6, atol=1e-6)
    identity = transform(torch.eye(SIZE))
    assert (identity @ identity.T - torch.eye(SIZE)).abs().max() <= 1e-5


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 200))
def test_a_permutation_moves_every_channel_once_and_can_be_undone(seed, size):
    index = torch.randperm(size, generator=generator(seed))
    x = torch.arange(size).float()
    moved = Permutation(index)(x)
    assert torch.equal(moved, index.float())
    assert torch.equal(Permutation(index.argsort())(moved), x)


@settings(max_examples=40, deadline=None)
@given(order=st.sampled_from(PALEY), power=st.integers(0, 5), seed=st.integers(0, 10**6))
def test_every_paley_order_times_a_power_of_two_has_a_transform(order, power, seed):
    size = order << power
    assume(size <= 6000)
    x = torch.randn(3, size, generator=generator(seed), dtype=torch.float64)
    transform = Hadamard(size)
    assert close(transform(x) @ transform(x).T, x @ x.T, 1e-12)
    unit = torch.zeros(size, dtype=torch.float64)
    unit[seed % size] = 1
    spread = transform(unit).abs() * size**0.5
    torch.testing.assert_close(spread, torch.ones_like(spread))


@settings(max_examples=80, deadline=None)
@given(size=st.integers(1, 700))
def test_a_size_is_cut_into_orders_that_are_orthogonal_or_refused(size):
    missing = without_hadamard({"the width": size})
    if missing is not None:
        assert (
            missing == f"the width is {size}: no Hadamard matrix of order {size} can be built here"
        )
        with pytest.raises(QuantizationError):
            hadamard_factors(size)
        assert size % 4 or not any(size % order == 0 and is_power(size // order) for order in PALEY)
        return
    assert size in (1, 2) or size % 4 == 0
    product = 1
    for order in hadamard_factors(size):
        matrix, product = hadamard_matrix(order).double(), product * order
        assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))
    assert product == size


def is_power(number):
    return number & (number - 1) == 0
