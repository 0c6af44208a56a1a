"""The inner loop of GPTQ (arXiv 2210.17323): round a block of columns one after the other.

Of every output's weights W, one block of C inputs is rounded in order. With U the upper Cholesky
factor of the inverse Hessian, restricted to the block, s and z the scale and the zero of input i:

    w_i = W_i - sum over j < i of e_j U_ji         what is left of the weight
    v_i = s (clip(round(w_i / s) + z) - z)         its rounded value
    e_i = (w_i - v_i) / U_ii                       the error that later inputs compensate

The caller takes U^T e from the columns after the block with one matrix product. Everything is in
float32 with rounding half to even. Rows do not influence each other, so one program of the Triton
kernel walks through the columns of a few of them, their errors in registers; it is used on CUDA,
the reference everywhere else. Both sum in another order: where w_i / s lies on the edge between two
codes, they may differ.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

LARGEST_BLOCK = 256
"""Columns whose errors one program can hold in registers."""
ROWS = 8
"""Rows of one program: so few that a square layer of 4096 still fills a large GPU."""

tl: Any = None
"""`triton.language`, once the kernel has been needed."""


def round_block(
    columns: Tensor,
    factor: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_of_column: Tensor,
    *,
    lowest: int,
    highest: int,
) -> tuple[Tensor, Tensor]:
    """Round one block of columns, each compensated for the errors of those before it.

    Args:
        columns: (C, m) float32, one row for each input, left as it is.
        factor: (C, C) float32, upper triangular with a positive diagonal; what is below the
            diagonal is not read. May be a view of a larger matrix.
        scales: (G, m) float32, positive.
        zeros: (G, m) float32, the codes of zero, whole numbers.
        group_of_column: (C,) int64, which grid each column is rounded to.
        lowest: Least code.
        highest: Greatest code.

    Returns:
        The rounded columns and the scaled errors, both (C, m) float32. A NaN stays a NaN.

    Raises:
        ValueError: If shapes or dtypes are others.
    """
    _check(columns, factor, scales, zeros, group_of_column)
    run = launch if supported(columns) else reference
    return run(columns, factor, scales, zeros, group_of_column, lowest=lowest, highest=highest)


def supported(columns: Tensor) -> bool:
    """Say whether the Triton kernel can take this block."""
    return columns.is_cuda and len(columns) <= LARGEST_BLOCK and _has_triton()


def reference(
    columns: Tensor,
    factor: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_of_column: Tensor,
    *,
    lowest: int,
    highest: int,
) -> tuple[Tensor, Tensor]:
    """Do the same as `round_block` in plain PyTorch, column by column."""
    errors, rounded = columns.clone(), torch.empty_like(columns)
    for i, group in enumerate(group_of_column.tolist()):
        scale, zero = scales[group], zeros[group]
        codes = (torch.round(errors[i] / scale) + zero).clamp(lowest, highest)
        rounded[i] = scale * (codes - zero)
        errors[i] = (errors[i] - rounded[i]) / factor[i, i]
        errors[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return rounded, errors


def launch(
    columns: Tensor,
    factor: Tensor,
    scales: Tensor,
    zeros: Tensor,
    group_of_column: Tensor,
    *,
    lowest: int,
    highest: int,
) -> tuple[Tensor, Tensor]:
    """Run the Triton kernel; arguments and result as for `round_block`."""
    columns, scales, zeros = columns.contiguous(), scales.contiguous(), zeros.contiguous()
    count, rows = columns.shape
    rounded, errors = torch.empty_like(columns), torch.empty_like(columns)
    if columns.numel():
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device_of(columns):
            _kernel()[(-(-rows // ROWS),)](
                columns,
                factor.T.contiguous(),
                scales,
                zeros,
                group_of_column,
                rounded,
                errors,
                rows,
                float(lowest),
                float(highest),
                COUNT=count,
                BLOCK=1 << (count - 1).bit_length(),
                ROWS=ROWS,
                num_warps=1,
            )
    return rounded, errors


def _check(
    columns: Tensor, factor: Tensor, scales: Tensor, zeros: Tensor, group_of_column: Tensor
) -> None:
    count, rows = columns.shape
    numbers = {"columns": columns, "factor": factor, "scales": scales, "zeros": zeros}
    for name, tensor in numbers.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be float32, not {tensor.dtype}")
    if factor.shape != (count, count):
        raise ValueError(f"factor must be {count} x {count}, not {tuple(factor.shape)}")
    if scales.shape != zeros.shape or scales.shape[1:] != (rows,):
        shapes = f"{tuple(scales.shape)} and {tuple(zeros.shape)}"
        raise ValueError(f"scales and zeros must both be (groups, {rows}), not {shapes}")
    if group_of_column.dtype != torch.int64 or group_of_column.shape != (count,):
        shape = tuple(group_of_column.shape)
        raise ValueError(f"group_of_column must be int64 ({count},), not {shape}")


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _kernel() -> Any:
    # Imported on first use: machines without a GPU may lack Triton, and planning need not wait.
    # The kernel's compiler looks `tl` up among the module's globals.
    global tl
    import triton
    import triton.language as tl

    # The compiler evaluates annotations: only its own types may stand here.
    @triton.jit
    def kernel(  # type: ignore[no-untyped-def]
        columns_pointer,  # noqa: ANN001
        factor_pointer,  # noqa: ANN001
        scales_pointer,  # noqa: ANN001
        zeros_pointer,  # noqa: ANN001
        groups_pointer,  # noqa: ANN001
        rounded_pointer,  # noqa: ANN001
        errors_pointer,  # noqa: ANN001
        rows,  # noqa: ANN001
        lowest,  # noqa: ANN001
        highest,  # noqa: ANN001
        COUNT: tl.constexpr,
        BLOCK: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        # The factor comes transposed: what a column takes from the errors lies together.
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        step = tl.arange(0, BLOCK)
        # Errors of columns not reached yet are zero, so that sums may run over all of them.
        errors = tl.zeros((BLOCK, ROWS), dtype=tl.float32)
        column, out, shares = columns_pointer + row, rounded_pointer + row, factor_pointer + step
        for i in range(COUNT):
            scale_place = tl.load(groups_pointer + i) * rows + row
            scale = tl.load(scales_pointer + scale_place, mask=inside, other=1.0)
            zero = tl.load(zeros_pointer + scale_place, mask=inside, other=0.0)
            weight = tl.load(column, mask=inside, other=0.0)
            share = tl.load(shares, mask=step < i, other=0.0)
            weight -= tl.sum(errors * share[:, None], axis=0)
            steps = tl.div_rn(weight, scale)
            steps = tl.minimum(tl.maximum(steps, lowest - zero), highest - zero)
            # Adding and taking away 1.5 * 2^23 rounds a small number half to even.
            rounded = scale * ((steps + 12582912.0) - 12582912.0)
            # Minima and maxima pass over a NaN.
            rounded = tl.where(weight == weight, rounded, weight)
            tl.store(out, rounded, mask=inside)
            error = tl.div_rn(weight - rounded, tl.load(factor_pointer + i * (COUNT + 1)))
            errors = tl.where((step == i)[:, None], error[None, :], errors)
            column, out, shares = column + rows, out + rows, shares + COUNT
        place = step[:, None].to(tl.int64) * rows + row[None, :]
        tl.store(errors_pointer + place, errors, mask=(step < COUNT)[:, None] & inside[None, :])

    return kernel
