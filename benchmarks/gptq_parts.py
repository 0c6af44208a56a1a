"""What the parts of GPTQ take on a GPU, each beside plain PyTorch: solver, Hessian, factor.

    python benchmarks/gptq_parts.py --out gptq-parts.json

The sizes are those of LLaDA-8B's and Dream-7B's linears, the data are random with outlying
channels. Errors are relative: of the solver the weighted error of the rounded weight over that of
the eager loop, of products and factors the distance from float64. `--check` runs tiny sizes on a
CPU.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from torch import Tensor

from dllm_sweep.kernels import gptq_block
from dllm_sweep.quant.gptq_weight import inverse_factor, quantize_weight
from dllm_sweep.quant.hessian import Hessian, exact_products

WEIGHTS = ((4096, 4096), (12288, 4096), (24576, 4096), (4096, 12288), (3584, 18944))
"""Outputs and inputs: one projection, q, k and v, gate and up, LLaDA's and Dream's down."""
LARGEST_COMPARED = 12288
"""With more inputs the eager loop and float64 are left out: they take too long."""
WIDTHS = (4096, 12288, 18944)
TOKENS = 16384
TINY_WEIGHTS, TINY_WIDTHS, TINY_TOKENS = ((48, 64),), (64,), 512
CORNER = 2048
"""Products are compared with float64 in this many channels."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        part: Solver, product or factor.
        size: Of the problem.
        path: How it was done.
        ms: Median time in milliseconds.
        error: See the script's text; None where there is nothing to compare with.
        same: Share of rounded weights that equal those of the eager loop.
    """

    part: str
    size: str
    path: str
    ms: float
    error: float | None = None
    same: float | None = None

    def line(self) -> str:
        """What a person reads of it."""
        error = "" if self.error is None else f"  error {self.error:.2e}"
        same = "" if self.same is None else f"  {self.same:.3%} equal"
        return f"{self.part:8} {self.size:16} {self.path:28} {self.ms:10.3f} ms{error}{same}"


class Bench:
    """Draws problems on a device and times ways to solve them."""

    def __init__(self, device: str, repeats: int = 3) -> None:
        self.device, self.repeats = device, repeats
        self.generator = torch.Generator(device).manual_seed(0)

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Median milliseconds after one call that is not counted, and the last result."""
        value, times = work(), []
        for _ in range(self.repeats):
            del value
            self._wait()
            began = time.perf_counter()
            value = work()
            self._wait()
            times.append(1000 * (time.perf_counter() - began))
        return median(times), value

    def inputs(self, tokens: int, channels: int) -> Tensor:
        """Correlated activations (tokens, channels) bfloat16 whose channels differ in size."""
        x = self._drawn(tokens, channels) * torch.exp(self._drawn(channels))
        return (x + 0.3 * x.roll(1, dims=1)).bfloat16()

    def solver_rows(self, outputs: int, inputs: int) -> Iterator[Row]:
        """A whole weight, with its grids and its factor."""
        weight = 0.02 * self._drawn(outputs, inputs)
        hessian = Hessian.over(self.inputs(2 * inputs, inputs)).mean()
        size, losses, rounded = f"{outputs} x {inputs}", {}, {}
        for path in ("eager loop", "kernel"):
            if path == "eager loop" and inputs > LARGEST_COMPARED:
                continue
            with mock.patch.object(gptq_block, "supported", _paths()[path]):
                ms, result = self.timed(
                    lambda: quantize_weight(weight, hessian, bits=4, group_size=min(128, inputs))
                )
            rounded[path] = result.dequantized
            losses[path] = _loss(weight - result.dequantized, hessian)
            yield Row(
                part="solver",
                size=size,
                path=path,
                ms=ms,
                error=losses[path] / losses["eager loop"] - 1 if len(losses) == 2 else None,
                same=_share(rounded) if len(rounded) == 2 else None,
            )

    def product_rows(self, tokens: int, channels: int) -> Iterator[Row]:
        """X^T X of one batch, for bfloat16 inputs and for float32 ones."""
        half = self.inputs(tokens, channels)
        whole = half.float() * (1 + torch.rand(tokens, 1, device=self.device))
        for x, kind in ((half, "bfloat16"), (whole, "float32")):
            part = x[:, :CORNER].double()
            exact = part.T @ part
            for path, work in _products(x).items():
                ms, product = self.timed(work)
                yield Row(
                    part="product",
                    size=f"{tokens} x {channels}",
                    path=f"{kind}: {path}",
                    ms=ms,
                    error=_beside_diagonal(product[:CORNER, :CORNER].double(), exact),
                )

    def factor_rows(self, channels: int) -> Iterator[Row]:
        """The upper factor of the inverse Hessian."""
        hessian = Hessian.over(self.inputs(2 * channels, channels)).mean()
        order = torch.argsort(hessian.diagonal(), descending=True)
        damped = hessian[order][:, order]
        damped.diagonal().add_(0.01 * damped.diagonal().mean())
        diagonal = hessian.diagonal().clone()
        exact = None
        if channels <= LARGEST_COMPARED:
            exact = torch.linalg.cholesky(torch.linalg.inv(damped.double()), upper=True)
        ways = {
            "inverse and two factors": lambda: torch.linalg.cholesky(
                torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True
            ),
            "inverse_factor": lambda: inverse_factor(hessian, diagonal, order, 0.01)[0],
        }
        for path, work in ways.items():
            ms, factor = self.timed(work)
            error = None if exact is None else float((factor - exact).norm() / exact.norm())
            yield Row(part="factor", size=str(channels), path=path, ms=ms, error=error)

    def _drawn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def _paths() -> dict[str, Callable[[Tensor], bool]]:
    return {"eager loop": lambda _: False, "kernel": gptq_block.supported}


def _products(x: Tensor) -> dict[str, Callable[[], Tensor]]:
    def tf32() -> Tensor:
        torch.set_float32_matmul_precision("high")
        try:
            return x.float().T @ x.float()
        finally:
            torch.set_float32_matmul_precision("highest")

    return {
        "float32": lambda: x.float().T @ x.float(),
        "tf32": tf32,
        "Hessian.add": lambda: Hessian.over(x).total,
    }


def _loss(difference: Tensor, hessian: Tensor) -> float:
    return float(((difference @ hessian) * difference).sum(dtype=torch.float64))


def _share(rounded: dict[str, Tensor]) -> float:
    one, two = rounded.values()
    return float(torch.isclose(one, two, rtol=1e-5, atol=1e-7).float().mean())


def _beside_diagonal(found: Tensor, exact: Tensor) -> float:
    """Greatest error beside the root of the two diagonal entries of its row and column."""
    sizes = exact.diagonal().sqrt()
    return float(((found - exact) / (sizes[:, None] * sizes)).abs().max())


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
@click.option("--check", is_flag=True, help="Tiny sizes on a CPU.")
def main(out: Path | None, check: bool) -> None:
    """Measure, print a line for each row, and write them."""
    if not check and not torch.cuda.is_available():
        raise click.ClickException("there is no GPU: --check runs tiny sizes on the CPU")
    bench = Bench("cpu" if check else "cuda")
    rows = []
    with exact_products():
        for row in _rows(bench, check):
            rows.append(row)
            click.echo(row.line())
    if out is not None:
        device = platform.machine() if check else torch.cuda.get_device_name()
        record = {"device": device, "torch": torch.__version__, "rows": [*map(asdict, rows)]}
        out.write_text(json.dumps(record, indent=1) + "\n")


def _rows(bench: Bench, check: bool) -> Iterator[Row]:
    for outputs, inputs in TINY_WEIGHTS if check else WEIGHTS:
        yield from bench.solver_rows(outputs, inputs)
    for width in TINY_WIDTHS if check else WIDTHS:
        yield from bench.product_rows(TINY_TOKENS if check else TOKENS, width)
        yield from bench.factor_rows(width)


if __name__ == "__main__":
    main()
