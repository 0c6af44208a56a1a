"""What loading, generating, scoring and quantizing take at the size of LLaDA-8B and Dream-7B.

    python benchmarks/real_size.py --family llada --family dream --out real-size.json

The weights are random, the shapes and the layout are the published ones. Every saving is timed
beside the plain path of the product, and generation also beside the authors' arithmetic. `--check`
runs everything at a tiny size on a CPU and exits with 1 unless both paths agree there.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from real_cases import (
    REAL,
    TINY,
    Generating,
    Row,
    authors_steps,
    evict,
    questions,
    random_ids,
)
from run_record import record_of

from dllm_sweep import load_model, quantize
from dllm_sweep.decoding.likelihood import Estimation, Scored, score_pairs
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

HERE = Path(__file__).resolve().parent
PARTS = ("load", "generate", "score", "rtn", "gptq")
_SCHEME = "w4a16-g128"
_GIB = 2**30


class Bench:
    """One family's checkpoint, and what is measured on it."""

    def __init__(self, family: str, folder: Path, *, check: bool, gptq_blocks: int | None) -> None:
        self.family, self.folder, self.check = family, folder, check
        self.gptq_blocks = gptq_blocks
        self.sizes = TINY if check else REAL
        self.device = "cpu" if check else "cuda"
        self.dtype = "float32" if check else "bfloat16"
        # Imports and the start of CUDA are no part of what is timed.
        load_model(f"{family}-tiny", device=self.device)
        self.model: Any = None
        self.wrong: list[str] = []

    def run(self, part: str) -> Iterator[Row]:
        """Measure one part."""
        if part != "load" and self.model is None:
            self.model = self._load()
        yield from getattr(self, f"_{part}_rows")()

    def make(self) -> None:
        """Write the checkpoint, unless it is there; in a process of its own, so that the memory
        that it takes is not counted as loading's."""
        if any(self.folder.glob("*.index.json")):
            return
        command = [sys.executable, str(HERE / "real_checkpoints.py"), self.family, str(self.folder)]
        subprocess.run([*command, *(["--small"] if self.check else [])], check=True)

    def _load_rows(self) -> Iterator[Row]:
        self.make()
        files = list(self.folder.glob("*.safetensors"))
        gigabytes = sum(file.stat().st_size for file in files) / 1e9
        for path in ("cold", "warm"):
            if path == "cold":
                evict(files)
            self.model = None
            seconds, peak, self.model = self._timed(self._load)
            host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            yield self._row(
                "load", path, seconds, "GB", gigabytes, peak, note=f"host at most {host:.1f} GiB"
            )

    def _generate_rows(self) -> Iterator[Row]:
        for case in self.sizes.generating:
            ids = random_ids(self.model, case.batch, case.prompt, seed=1)
            what = f"generate {case.batch} x {case.prompt + case.length}"
            seconds, peak, note, _ = self._twice(partial(authors_steps, self.model, ids, case))
            yield self._row(what, "authors", seconds, "step", case.steps, peak, note=note)
            written = {}
            for path in ("plain", "exact savings"):
                write = partial(
                    sample,
                    self.model,
                    ids.tolist(),
                    self._decoding(case),
                    batch_size=case.batch,
                    plain=path == "plain",
                )
                seconds, peak, note, written[path] = self._twice(write)
                tokens = sum(one.token_forwards for one in written[path])
                note += self._same(written)
                yield self._row(what, path, seconds, "step", case.steps, peak, tokens, note)

    def _score_rows(self) -> Iterator[Row]:
        estimator = self.model.family.estimator
        for case in self.sizes.scoring:
            found: dict[str, Sequence[Scored]] = {}
            pairs = questions(self.model, case)
            for path, items in (("plain", case.plain), ("exact savings", case.items)):
                how = Estimation(draws=case.draws, estimator=estimator, plain=path == "plain")
                score = partial(score_pairs, self.model, pairs[: 4 * items], how)
                seconds, peak, first, found[path] = self._twice(score)
                rows = sum(one.rows for one in found[path])
                note = f"{first}, {rows / items:.1f} rows an item, {rows / seconds:.0f} rows/s"
                tokens = sum(one.token_forwards for one in found[path])
                note += self._apart(found)
                yield self._row(
                    f"score {case.name}", path, seconds, "item", items, peak, tokens, note
                )

    def _rtn_rows(self) -> Iterator[Row]:
        yield self._quantized("rtn", len(self.model.blocks))

    def _gptq_rows(self) -> Iterator[Row]:
        samples, length = self.sizes.calibration
        ids = random_ids(self.model, samples, length, seed=3).cpu()
        blocks = self.gptq_blocks or len(self.model.blocks)
        chosen = tuple(f"{self.model.block_name(index)}.*" for index in range(blocks))
        yield self._quantized("gptq", blocks, calibration=ids, modules=chosen)

    def _quantized(self, method: str, blocks: int, **options: Any) -> Row:
        work = lambda: quantize(self.model, method=method, scheme=_SCHEME, **options)  # noqa: E731
        seconds, peak, model = self._timed(work)
        self.model = None
        note = f"{model.quantization_report.average_bits:.2f} bits a weight, {blocks} blocks"
        if "calibration" in options:
            note += f", {options['calibration'].numel()} calibration tokens"
        return self._row(
            f"quantize {method} {_SCHEME}", "", seconds, "block", blocks, peak, note=note
        )

    def _load(self) -> DiffusionModel:
        return load_model(str(self.folder), device=self.device, dtype=self.dtype)

    def _decoding(self, case: Generating) -> DecodingSpec:
        sampler = self.model.family.sampler
        algorithm = {"blockwise": "low_confidence", "timeline": "entropy"}[sampler]
        block = case.block if sampler == "blockwise" else case.length
        return DecodingSpec(
            gen_length=case.length,
            steps=case.steps,
            block_length=block,
            sampler=sampler,
            algorithm=algorithm,
        )

    def _timed(self, work: Callable[[], Any]) -> tuple[float, float, Any]:
        """Seconds, peak memory of the device in GiB, and what came out."""
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        value = work()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, torch.cuda.max_memory_allocated() / _GIB if on_gpu else 0.0, value

    def _twice(self, work: Callable[[], Any]) -> tuple[float, float, str, Any]:
        """As `_timed`, the second time: the first call of a shape loads and chooses its kernels.

        The third value says how long the first time took.
        """
        first, _, _ = self._timed(work)
        seconds, peak, value = self._timed(work)
        return seconds, peak, f"first {first:.2f} s", value

    def _row(
        self,
        what: str,
        path: str,
        seconds: float,
        unit: str,
        units: float,
        peak: float,
        tokens: int | None = None,
        note: str = "",
    ) -> Row:
        return Row(
            model=self.family,
            what=what,
            path=path,
            seconds=seconds,
            unit=unit,
            units=units,
            tokens=tokens,
            gpu_gib=peak,
            note=note,
        )

    def _same(self, written: dict[str, Any]) -> str:
        if len(written) < 2:
            return ""
        pairs = [
            (a, b)
            for one, two in zip(*written.values(), strict=True)
            for a, b in zip(one.tokens, two.tokens, strict=False)
        ]
        share = sum(a == b for a, b in pairs) / len(pairs)
        if self.check and share < 1:
            self.wrong.append(f"{self.family}: {1 - share:.0%} of the tokens differ")
        return f", {share:.1%} of the tokens as plain"

    def _apart(self, found: dict[str, Sequence[Scored]]) -> str:
        if len(found) < 2:
            return ""
        pairs = zip(*found.values(), strict=False)
        worst = max(abs(one.value - two.value) / abs(one.value) for one, two in pairs)
        if self.check and worst > 1e-5:
            self.wrong.append(f"{self.family}: log-likelihoods differ by {worst:.1e}")
        return f", apart from plain by {worst:.0e} at most"


@click.command(help=__doc__)
@click.option("--family", "families", multiple=True, type=click.Choice(["llada", "dream"]))
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="All if none.")
@click.option("--checkpoints", type=click.Path(path_type=Path), help="Folder that keeps them.")
@click.option("--gptq-blocks", type=int, help="Quantize this many blocks only.")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file, rewritten after each row.")
@click.option("--check", is_flag=True, help="A tiny size on a CPU; exit 1 unless paths agree.")
def main(
    families: tuple[str, ...],
    parts: tuple[str, ...],
    checkpoints: Path | None,
    gptq_blocks: int | None,
    out: Path | None,
    check: bool,
) -> None:
    """Measure, print a line for each row, and write them."""
    if not check and not torch.cuda.is_available():
        raise click.ClickException("there is no GPU: --check runs a tiny size on the CPU")
    rows: list[Row] = []
    wrong: list[str] = []
    for family in families or ("llada", "dream"):
        with tempfile.TemporaryDirectory() as place:
            folder = (checkpoints or Path(place)) / family
            bench = Bench(family, folder, check=check, gptq_blocks=gptq_blocks)
            for part in ("load", *(one for one in PARTS[1:] if one in (parts or PARTS))):
                for row in bench.run(part):
                    rows.append(row)
                    click.echo(_line(row))
                    if out is not None:
                        out.write_text(json.dumps(record_of(rows), indent=1) + "\n")
            wrong += bench.wrong
    if wrong:
        raise click.ClickException("; ".join(wrong))


def _line(row: Row) -> str:
    tokens = "" if row.tokens is None else f"{row.tokens} token-forwards"
    cells = (f"{row.seconds:.2f} s", row.each, f"{row.gpu_gib:.1f} GiB", tokens, row.note)
    return f"{row.model:6} {row.what:38} {row.path:14} " + " | ".join(
        cell for cell in cells if cell
    )


if __name__ == "__main__":
    main()
