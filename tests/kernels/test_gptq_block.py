"""The reference against its definition, and the Triton kernel against the reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.kernels import gptq_block
from dllm_sweep.kernels.gptq_block import launch, reference, round_block, supported
from tests.kernels.interpreter import what_it_prints


def problem(count=24, rows=10, groups=3, *, seed=0, strength=0.5, device="cpu"):
    """Columns, factor, scales, zeros and groups, for codes 0 to 15."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    mixed = drawn(4 * count, count) @ (
        torch.eye(count) + strength * drawn(count, count) / count**0.5
    )
    hessian = mixed.T @ mixed / len(mixed) + 0.01 * torch.eye(count)
    factor = torch.linalg.cholesky(torch.linalg.inv(hessian.double()), upper=True).float()
    # What lies below the diagonal must not be read.
    below = torch.ones(count, count, dtype=torch.bool).tril(-1)
    factor = factor.masked_fill(below, torch.nan)
    scales = torch.rand(groups, rows, generator=generator) * 0.2 + 0.1
    zeros = torch.randint(0, 16, (groups, rows), generator=generator).float()
    group_of_column = torch.randint(0, groups, (count,), generator=generator)
    parts = (drawn(count, rows), factor, scales, zeros, group_of_column)
    return tuple(part.to(device) for part in parts)


def rounded_to_grid(columns, scales, zeros, groups):
    codes = (torch.round(columns / scales[groups]) + zeros[groups]).clamp(0, 15)
    return scales[groups] * (codes - zeros[groups])


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 40), rows=st.integers(1, 9), seed=st.integers(0, 10**6))
def test_what_rounding_changed_is_what_the_errors_explain(count, rows, seed):
    columns, factor, scales, zeros, groups = problem(count, rows, seed=seed)
    rounded, errors = reference(columns, factor, scales, zeros, groups, lowest=0, highest=15)
    explained = factor.nan_to_num(0).T @ errors
    torch.testing.assert_close(columns - rounded, explained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rounded, rounded_to_grid(rounded, scales, zeros, groups))


def test_without_correlations_it_is_plain_rounding():
    columns, factor, scales, zeros, groups = problem()
    plain = rounded_to_grid(columns, scales, zeros, groups)
    rounded, errors = reference(
        columns, torch.eye(len(factor)), scales, zeros, groups, lowest=0, highest=15
    )
    assert torch.equal(rounded, plain)
    assert torch.equal(errors, columns - plain)


def test_rows_do_not_influence_each_other_and_the_arguments_stay():
    columns, factor, scales, zeros, groups = problem()
    before = columns.clone()
    columns[3, 2] = torch.nan
    rounded, _ = round_block(columns, factor, scales, zeros, groups, lowest=0, highest=15)
    alone, _ = round_block(before, factor, scales, zeros, groups, lowest=0, highest=15)
    others = [row for row in range(columns.shape[1]) if row != 2]
    assert torch.equal(rounded[:, others], alone[:, others])
    assert rounded[3:, 2].isnan().all()
    assert columns[3, 2].isnan()
    assert torch.equal(columns[:3], before[:3])


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.zeros(24, 10, dtype=torch.float64), "columns must be float32"),
        (1, torch.zeros(24, 23), "factor must be 24 x 24, not \\(24, 23\\)"),
        (2, torch.ones(3, 9), "scales and zeros must both be \\(groups, 10\\)"),
        (4, torch.zeros(24), "group_of_column must be int64 \\(24,\\)"),
    ],
)
def test_what_does_not_fit_is_refused(place, wrong, message):
    parts = list(problem())
    parts[place] = wrong
    with pytest.raises(ValueError, match=message):
        round_block(*parts, lowest=0, highest=15)


def test_the_kernel_is_not_offered_on_the_cpu():
    assert not supported(torch.zeros(4, 4))


def compare_the_kernel_with_the_reference(device):
    """Odd sizes, views, and rows with a NaN; bit for bit but for the order of sums."""
    for count, rows, groups in [(1, 1, 1), (5, 3, 2), (17, 10, 3), (8, 0, 1)]:
        columns, factor, scales, zeros, group = problem(count, rows, groups, device=device)
        wide = torch.full((count + 3, count + 5), torch.nan, device=device)
        wide[1 : count + 1, 2 : count + 2] = factor
        view = wide[1 : count + 1, 2 : count + 2]
        if rows > 2:
            columns[count // 2, 1] = torch.nan
        got = launch(columns, view, scales, zeros, group, lowest=0, highest=15)
        expected = reference(columns, factor, scales, zeros, group, lowest=0, highest=15)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_kernel_equals_the_reference_in_tritons_interpreter():
    assert what_it_prints(__file__) == "equal"


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_the_kernel_compiles_for_gpus_that_are_not_here(capability):
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = gptq_block._kernel()
    types = dict.fromkeys(kernel.arg_names, "*fp32")
    types |= {"groups_pointer": "*i64", "rows": "i32", "lowest": "fp32", "highest": "fp32"}
    constants = {"COUNT": 128, "BLOCK": 128, "ROWS": gptq_block.ROWS}
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": 1})
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]


if __name__ == "__main__":
    compare_the_kernel_with_the_reference("cpu")
    print("equal")
