"""Dynamic fake quantization of activations, one grid for each token.

For a token x of n channels, b bits and a clip ratio c in (0, 1]:

    symmetric    s = c max|x| / (2^(b-1) - 1)               codes -2^(b-1) .. 2^(b-1) - 1
    asymmetric   s = c (max(x, 0) - min(x, 0)) / (2^b - 1)  codes 0 .. 2^b - 1, zero on the grid

All arithmetic is in float32 with rounding half to even; a token of zeros stays zero, and a token
with a NaN or an infinity becomes NaN as a whole, so that a fault shows. One program of the Triton
kernel handles one token; it is used on CUDA, the reference everywhere else.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

LARGEST_ROW = 65536
"""Channels that one program can hold at once."""
_TINY = torch.finfo(torch.float32).tiny

tl: Any = None
"""`triton.language`, once the kernel has been needed."""


def fake_quantize_tokens(
    activations: Tensor, *, bits: int, symmetric: bool = True, clip_ratio: float = 1.0
) -> Tensor:
    """Round every token to its own grid, on whatever device the activations are.

    Args:
        activations: (..., n) floating point; the last dimension holds a token's channels.
        bits: 2 to 8.
        symmetric: The family of the grid; see the module's table.
        clip_ratio: Share of the token's range that the grid spans, in (0, 1].

    Returns:
        (..., n) in the dtype of `activations`, which is left as it is.
    """
    if supported(activations):
        return launch(activations, bits=bits, symmetric=symmetric, clip_ratio=clip_ratio)
    return reference(activations, bits=bits, symmetric=symmetric, clip_ratio=clip_ratio)


def supported(activations: Tensor) -> bool:
    """Say whether the Triton kernel can take these activations."""
    return (
        activations.is_cuda
        and activations.dtype in (torch.float16, torch.bfloat16, torch.float32)
        and 0 < activations.shape[-1] <= LARGEST_ROW
        and _has_triton()
    )


def reference(
    activations: Tensor, *, bits: int, symmetric: bool = True, clip_ratio: float = 1.0
) -> Tensor:
    """Do the same as `fake_quantize_tokens` in plain PyTorch: the definition of the kernel."""
    x = activations.float()
    lowest, highest, steps = _codes(bits, symmetric)
    if symmetric:
        span = x.abs().amax(-1, keepdim=True) * clip_ratio
    else:
        low = x.amin(-1, keepdim=True).clamp(max=0) * clip_ratio
        span = x.amax(-1, keepdim=True).clamp(min=0) * clip_ratio - low
    # Divided by a tensor: CUDA turns a division by a Python number into a product.
    scale = span / torch.full_like(span, steps)
    scale = torch.where(scale < _TINY, torch.ones_like(scale), scale)
    zero = torch.zeros_like(scale) if symmetric else torch.round(-low / scale)
    codes = torch.round(x / scale).clamp(min=lowest - zero, max=highest - zero)
    return (codes * scale).to(activations.dtype)


def launch(activations: Tensor, *, bits: int, symmetric: bool, clip_ratio: float) -> Tensor:
    """Run the Triton kernel; arguments and result as for `fake_quantize_tokens`."""
    channels = activations.shape[-1]
    rows = activations.reshape(-1, channels).contiguous()
    out = torch.empty_like(rows)
    lowest, highest, steps = _codes(bits, symmetric)
    if rows.shape[0]:
        # Triton launches on the current device, which need not be the tensors'.
        with torch.cuda.device_of(rows):
            _kernel()[(rows.shape[0],)](
                rows,
                out,
                channels,
                float(clip_ratio),
                float(lowest),
                float(highest),
                float(steps),
                SYMMETRIC=symmetric,
                BLOCK=1 << (channels - 1).bit_length(),
            )
    return out.reshape(activations.shape)


def _codes(bits: int, symmetric: bool) -> tuple[int, int, int]:
    if symmetric:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1, 2**bits - 1


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
        x_pointer,  # noqa: ANN001
        out_pointer,  # noqa: ANN001
        channels,  # noqa: ANN001
        clip_ratio,  # noqa: ANN001
        lowest,  # noqa: ANN001
        highest,  # noqa: ANN001
        steps,  # noqa: ANN001
        SYMMETRIC: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        start = tl.program_id(0).to(tl.int64) * channels
        offsets = tl.arange(0, BLOCK)
        inside = offsets < channels
        x = tl.load(x_pointer + start + offsets, mask=inside, other=0.0).to(tl.float32)
        low = tl.min(x, axis=0) * clip_ratio
        high = tl.max(x, axis=0) * clip_ratio
        low = tl.minimum(low, 0.0)
        high = tl.maximum(high, 0.0)
        span = tl.maximum(high, -low) if SYMMETRIC else high - low
        scale = tl.div_rn(span, steps)
        scale = tl.where(scale < 1.1754943508222875e-38, 1.0, scale)
        # Adding and taking away 1.5 * 2^23 rounds a small number half to even.
        zero = 0.0 if SYMMETRIC else (tl.div_rn(-low, scale) + 12582912.0) - 12582912.0
        codes = tl.minimum(tl.maximum(tl.div_rn(x, scale), lowest - zero), highest - zero)
        codes = (codes + 12582912.0) - 12582912.0
        # Minima and maxima pass over a NaN: poison the token.
        broken = tl.max(tl.where(tl.abs(x) < float("inf"), 0, 1), axis=0) > 0
        scale = tl.where(broken, float("nan"), scale)
        tl.store(out_pointer + start + offsets, codes * scale, mask=inside)

    return kernel
