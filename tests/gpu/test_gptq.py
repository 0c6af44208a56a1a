"""GPTQ's kernel and products on one GPU, against plain PyTorch."""

import pytest
import torch

from dllm_sweep.kernels.gptq_block import reference, round_block, supported
from tests.kernels.test_gptq_block import compare_the_kernel_with_the_reference, problem

pytestmark = pytest.mark.gpu


def test_the_kernel_equals_the_reference():
    compare_the_kernel_with_the_reference("cuda")


def test_a_whole_block_of_many_rows_is_rounded_as_well_as_by_the_reference():
    parts = problem(128, 5000, 4, seed=1, device="cuda")
    assert supported(parts[0])
    got, _ = round_block(*parts, lowest=0, highest=15)
    expected, _ = reference(*parts, lowest=0, highest=15)
    same = torch.isclose(got, expected, rtol=1e-5, atol=1e-6)
    assert same.float().mean() >= 0.995
    # With U the factor, (U^T U)^-1 is the Hessian: the error is that of U^-T (w - v).
    factor = parts[1].nan_to_num(0).double()
    losses = [
        torch.linalg.solve_triangular(factor.T, (parts[0] - v).double(), upper=False).norm() ** 2
        for v in (got, expected)
    ]
    assert abs(losses[0] / losses[1] - 1) < 1e-3


def test_two_runs_give_the_same_bits():
    parts = problem(128, 1000, 4, device="cuda")
    first, second = (round_block(*parts, lowest=0, highest=15) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
