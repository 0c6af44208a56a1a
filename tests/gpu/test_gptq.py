"""GPTQ's kernel and products on one GPU, against plain PyTorch."""

import pytest
import torch

from dllm_sweep.kernels.gptq_block import reference, round_block, supported
from dllm_sweep.quant.gptq_weight import quantize_weight
from dllm_sweep.quant.hessian import Hessian
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_hessian_is_that_of_float64(dtype, weighted):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(3, 2048, 300, device="cuda", generator=generator)
    x *= torch.exp(2 * torch.randn(300, device="cuda", generator=generator))
    x = (x + 0.3 * x.roll(1, dims=-1)).to(dtype)
    weights = torch.rand(3 * 2048, device="cuda") + 0.1 if weighted else None
    found = Hessian.over(x, weights).mean().double()
    tokens = x.double().flatten(0, -2)
    count = torch.ones(len(tokens), 1, device="cuda") if weights is None else weights[:, None]
    exact = 2 * tokens.T @ (count * tokens) / count.double().sum()
    sizes = exact.diagonal().sqrt()
    assert ((found - exact).abs() <= 1e-4 * sizes[:, None] * sizes).all()


def test_a_weight_is_rounded_on_the_gpu_as_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(96, 256, generator=generator)
    x = torch.randn(2048, 256, generator=generator)
    x = x @ (torch.eye(256) + 0.03 * torch.randn(256, 256, generator=generator))
    hessian = Hessian.over(x).mean()
    for options in ({"static_groups": True}, {"static_groups": False}):
        options |= {"bits": 4, "group_size": 32, "block_size": 64}
        here = quantize_weight(weight, hessian, **options).dequantized
        there = quantize_weight(weight.cuda(), hessian.cuda(), **options).dequantized.cpu()
        assert torch.isclose(here, there, rtol=1e-4, atol=1e-5).float().mean() >= 0.995
