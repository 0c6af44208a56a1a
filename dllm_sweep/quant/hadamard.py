"""Hadamard matrices, built from quadratic residues, and their sizes as products of small ones.

A Hadamard matrix of order n has entries 1 and -1 and orthogonal rows. Sylvester's construction
doubles an order; Paley's two give orders that are no power of two: q + 1 for a prime q = 3 mod 4,
and 2 (q + 1) for a prime q = 1 mod 4. Orders 12 (q = 11), 28 (q = 13) and 148 (q = 73) reach the
widths of LLaDA-8B (4096, 12288) and Dream-7B (3584, 18944).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from dllm_sweep.errors import QuantizationError

LARGEST_FACTOR = 64
"""Powers of two are cut into factors up to this size: each costs that many products an input."""


@cache
def hadamard_factors(size: int) -> tuple[int, ...]:
    """Write `size` as a product of orders of Hadamard matrices that are built directly.

    Args:
        size: 1, 2 or a multiple of 4.

    Returns:
        Orders, the Paley order first if `size` is no power of two.

    Raises:
        QuantizationError: If no such product is known.
    """
    power = size & -size
    odd = size // power
    if odd == 1:
        return _powers_of_two(size)
    order = next((odd * p for p in _powers_up_to(power) if _paley_prime(odd * p)), None)
    if order is None:
        raise QuantizationError(f"no Hadamard matrix of order {size} can be built here")
    return (order, *_powers_of_two(size // order))


def without_hadamard(sizes: Mapping[str, int]) -> str | None:
    """Say which of some sizes has no Hadamard matrix that can be built here, or None.

    Args:
        sizes: What has this size, such as `the hidden size` -> 4096.
    """
    for what, size in sizes.items():
        try:
            hadamard_factors(size)
        except QuantizationError as error:
            return f"{what} is {size}: {error}"
    return None


@cache
def hadamard_matrix(order: int) -> Tensor:
    """Build the Hadamard matrix of one of the orders that `hadamard_factors` gives.

    Returns:
        (order, order) int8, entries 1 and -1, never to be changed; H H^T = order I.

    Raises:
        QuantizationError: If the order is neither a power of two nor one of Paley's.
    """
    if order & (order - 1) == 0:
        return _sylvester(order)
    prime = _paley_prime(order)
    if prime is None:
        raise QuantizationError(f"no Hadamard matrix of order {order} can be built here")
    return _paley_first(prime) if prime % 4 == 3 else _paley_second(prime)


def _powers_up_to(power: int) -> list[int]:
    return [1 << k for k in range(2, power.bit_length())]


def _powers_of_two(size: int) -> tuple[int, ...]:
    factors = []
    while size > LARGEST_FACTOR:
        factors.append(LARGEST_FACTOR)
        size //= LARGEST_FACTOR
    return (*factors, size) if size > 1 or not factors else tuple(factors)


def _paley_prime(order: int) -> int | None:
    if order % 4 == 0 and (order - 1) % 4 == 3 and _is_prime(order - 1):
        return order - 1
    half = order // 2 - 1
    return half if order % 4 == 0 and half % 4 == 1 and _is_prime(half) else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.int8)
    while len(matrix) < order:
        top = torch.cat((matrix, matrix), dim=1)
        matrix = torch.cat((top, torch.cat((matrix, -matrix), dim=1)))
    return matrix


def _residue_characters(prime: int) -> Tensor:
    """The matrix chi(i - j) (prime, prime): 1 for a square, -1 for another number, 0 for zero."""
    character = torch.full((prime,), -1, dtype=torch.int8)
    character[[x * x % prime for x in range(1, prime)]] = 1
    character[0] = 0
    index = torch.arange(prime)
    return character[(index[:, None] - index) % prime]


def _bordered(prime: int, left: int) -> Tensor:
    matrix = torch.zeros(prime + 1, prime + 1, dtype=torch.int8)
    matrix[0, 1:], matrix[1:, 0] = 1, left
    matrix[1:, 1:] = _residue_characters(prime)
    return matrix


def _paley_first(prime: int) -> Tensor:
    # The bordered matrix is skew: adding the identity makes its rows orthogonal.
    return _bordered(prime, -1) + torch.eye(prime + 1, dtype=torch.int8)


def _paley_second(prime: int) -> Tensor:
    # The bordered matrix is symmetric with a zero diagonal (a conference matrix).
    conference, identity = _bordered(prime, 1), torch.eye(prime + 1, dtype=torch.int8)
    apart = torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.int8)
    return torch.kron(conference, apart) + torch.kron(identity, diagonal)
