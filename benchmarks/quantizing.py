"""What every method takes at the size of LLaDA-8B and Dream-7B: time, memory, bits.

    python benchmarks/quantizing.py --family llada --out quantizing.json

The weights are random, the shapes and the layout are the published ones; calibration is given by
tokens. A row is one method on a freshly loaded model. `--offload` adds rows with the weights on the
CPU, whose blocks visit the GPU. `--check` runs everything at a tiny size on the CPU. The exit code
is 1 if a quantized model gives a logit that is not finite, or a method fails.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from run_record import record_of

from dllm_sweep import load_model
from dllm_sweep.methods import build
from dllm_sweep.methods.base import Workspace
from dllm_sweep.methods.in_place import calibration_batches
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import QuantScheme

HERE = Path(__file__).resolve().parent
CASES = {
    "rtn": "w4a16-g128",
    "gptq": "w4a16-g128",
    "awq": "w4a16-g128",
    "smoothquant": "w8a8",
    "quarot": "w4a4",
    "duquant": "w4a4",
}
"""Every method with the scheme it is measured at."""
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Row:
    """One method on one model.

    Attributes:
        model: Whose shape.
        method: The method's name.
        scheme: Bit-widths and groups.
        weights: The device that holds the weights.
        blocks: Blocks of the model.
        tokens: Calibration tokens; 0 for a method that reads none.
        seconds: Wall time of the quantization, the device's work included.
        first: Of it, until the first block was done: everything that is done once is in it.
        block: The median of the later blocks, in seconds; None if there are none.
        gpu_gib: Most memory of the GPU that tensors took at once, the weights included.
        reserved_gib: The same with what PyTorch held beside.
        bits: Mean bits of a weight with its scales and zeros.
        finite: Whether the logits of the quantized model are all finite.
        failure: What went wrong; None if nothing.
    """

    model: str
    method: str
    scheme: str
    weights: str
    blocks: int
    tokens: int
    seconds: float | None = None
    first: float | None = None
    block: float | None = None
    gpu_gib: float | None = None
    reserved_gib: float | None = None
    bits: float | None = None
    finite: bool | None = None
    failure: str | None = None

    @property
    def is_good(self) -> bool:
        """Whether the method ran and gave a model that can be used."""
        return self.failure is None and self.finite is True

    def line(self) -> str:
        """What a person reads of it."""
        head = f"{self.model:6} {self.method:12} {self.scheme:11} {self.weights:4} "
        if self.failure is not None:
            return f"{head} FAILED: {self.failure}"
        cells = [f"{self.seconds:7.2f} s", f"first block after {self.first:6.2f} s"]
        if self.block is not None:
            cells.append(f"then {self.block:.3f} s each")
        cells.append(f"{self.gpu_gib:.1f} GiB ({self.reserved_gib:.1f} held)")
        cells.append(f"{self.bits:.3f} bits")
        return head + ", ".join([*cells, "finite" if self.finite else "NOT FINITE"])


@dataclass
class Clock:
    """Times at which blocks were finished."""

    device: torch.device
    ticks: list[float] = field(default_factory=list)

    def tick(self, done: int = 0, total: int = 0) -> None:
        """Note the time when all of the device's work is done; usable as a progress callback."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.ticks.append(time.perf_counter())

    def spans(self) -> list[float]:
        """Seconds between one note and the next."""
        return [later - earlier for earlier, later in zip(self.ticks, self.ticks[1:], strict=False)]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One family's checkpoint and what is done to it."""

    family: str
    folder: Path
    check: bool
    layers: int | None
    samples: int
    length: int

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return torch.device("cpu" if self.check else "cuda")

    def make(self) -> None:
        """Write the checkpoint, unless it is there."""
        if any(self.folder.glob("*.index.json")):
            return
        command = [sys.executable, str(HERE / "real_checkpoints.py"), self.family, str(self.folder)]
        command += ["--small"] if self.check else []
        command += [] if self.layers is None else ["--layers", str(self.layers)]
        subprocess.run(command, check=True)

    def row(self, name: str, *, weights: str) -> Row:
        """Load the model, quantize it by one method, and look at what came out."""
        model = self._load(weights)
        head = Row(
            model=self.family,
            method=name,
            scheme=CASES[name],
            weights=weights,
            blocks=len(model.blocks),
            tokens=self.samples * self.length if build(name, {}).needs_calibration else 0,
        )
        try:
            measured = self._measured(model, name)
        except Exception as error:  # the other methods are still worth measuring
            traceback.print_exc()
            measured = {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
        return Row(**{**asdict(head), **measured})

    def _measured(self, model: DiffusionModel, name: str) -> dict[str, Any]:
        method = build(name, {})
        generator = torch.Generator().manual_seed(3)
        shape = (self.samples, self.length)
        ids = torch.randint(min(model.special.mask_id, 500), shape, generator=generator)
        batches = calibration_batches(model, ids) if method.needs_calibration else ()
        clock = Clock(self.device)
        _forget()
        clock.tick()
        report = method.quantize(
            model,
            QuantScheme.parse(CASES[name]),
            batches,
            workspace=Workspace(progress=clock.tick, device=self.device),
        )
        clock.tick()
        spans = clock.spans()
        on_gpu = self.device.type == "cuda"
        return {
            "seconds": clock.ticks[-1] - clock.ticks[0],
            "first": spans[0],
            "block": median(spans[1:-1]) if len(spans) > 2 else None,
            "gpu_gib": torch.cuda.max_memory_allocated() / _GIB if on_gpu else 0.0,
            "reserved_gib": torch.cuda.max_memory_reserved() / _GIB if on_gpu else 0.0,
            "bits": report.average_bits,
            "finite": _gives_finite_logits(model),
        }

    def _load(self, weights: str) -> DiffusionModel:
        dtype = "float32" if self.check else "bfloat16"
        return load_model(str(self.folder), device=weights, dtype=dtype)


def _forget() -> None:
    """Give memory of the last model back, so that the peak is this one's."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _gives_finite_logits(model: DiffusionModel) -> bool:
    tokens = 128 if model.device.type == "cuda" else 16
    ids = torch.randint(500, (1, tokens), generator=torch.Generator().manual_seed(4))
    return bool(torch.isfinite(model.logits(ids.to(model.device))).all())


def rows(bench: Bench, methods: Sequence[str], offloaded: Sequence[str]) -> Iterator[Row]:
    """Measure every method on one family, then some with the weights on the CPU."""
    bench.make()
    for name in methods:
        yield bench.row(name, weights=bench.device.type)
    for name in offloaded:
        yield bench.row(name, weights="cpu")


@click.command(help=__doc__)
@click.option("--family", "families", multiple=True, type=click.Choice(["llada", "dream"]))
@click.option("--method", "methods", multiple=True, type=click.Choice(list(CASES)))
@click.option("--offload", multiple=True, type=click.Choice(list(CASES)))
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Folder that keeps them.")
@click.option("--layers", type=int, help="Blocks, if not as many as published.")
@click.option("--samples", default=128, show_default=True, help="Calibration sequences.")
@click.option("--length", default=2048, show_default=True, help="Their tokens.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file, rewritten after each row.")
@click.option("--check", is_flag=True, help="A tiny size on the CPU.")
def main(
    families: Sequence[str],
    methods: Sequence[str],
    offload: Sequence[str],
    checkpoints: Path | None,
    out: Path | None,
    check: bool,
    **sizes: Any,
) -> None:
    """Measure, print a line for each row, and write them."""
    if not check and not torch.cuda.is_available():
        raise click.ClickException("there is no GPU: --check runs a tiny size on the CPU")
    if check:
        sizes = {"layers": None, "samples": 16, "length": 32}
    found: list[Row] = []
    for family in families or ("llada", "dream"):
        with tempfile.TemporaryDirectory() as place:
            folder = (checkpoints or Path(place)) / family
            bench = Bench(family=family, folder=folder, check=check, **sizes)
            for row in rows(bench, methods or tuple(CASES), offload):
                found.append(row)
                click.echo(row.line())
                if out is not None:
                    out.write_text(json.dumps(record_of(found), indent=1) + "\n")
    bad = [f"{row.model} {row.method}" for row in found if not row.is_good]
    if bad:
        raise click.ClickException(f"no usable model came out of: {', '.join(bad)}")


if __name__ == "__main__":
    main()
