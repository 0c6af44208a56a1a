"""`quantize`: one model, one method, one folder; no sweep and no store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dllm_sweep.cli.options import format_option

if TYPE_CHECKING:
    from dllm_sweep.saving.job import Job, Outcome


@click.command("quantize")
@click.option("--model", required=True, metavar="NAME", help="Embedded name, folder, or hub id.")
@click.option("--method", required=True, metavar="NAME", help="As `dllm-sweep list methods` says.")
@click.option("--scheme", required=True, metavar="SCHEME", help="Such as w4a16-g128.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="A new folder; it appears once it is whole.",
)
@click.option(
    "--layout",
    type=click.Choice(["dllm-sweep", "compressed-tensors"]),
    default="dllm-sweep",
    show_default=True,
    help="What reads the folder: load_model, for every method, or transformers, for weights alone.",
)
@click.option(
    "--set",
    "settings",
    metavar="NAME=VALUE",
    multiple=True,
    help="A parameter of the method, or a key of the calibration: --set damping=0.02,"
    " --set calibration.samples=64. May be repeated.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the method's own random choices.",
)
@click.option("--family", metavar="NAME", help="Of the model, where its files do not say.")
@click.option(
    "--device",
    "devices",
    metavar="NAME",
    multiple=True,
    help="Such as cuda:1; the GPU if there is one. Several share the model's blocks.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of the model; the checkpoint's own on a GPU, float32 on a CPU, bfloat16 with --offload.",
)
@click.option(
    "--offload", is_flag=True, help="Keep the weights on the CPU; blocks visit the GPU one by one."
)
@format_option()
def quantize_command(
    model: str,
    method: str,
    scheme: str,
    out: Path,
    layout: str,
    settings: tuple[str, ...],
    seed: int,
    family: str | None,
    devices: tuple[str, ...],
    dtype: str | None,
    offload: bool,
    form: str,
) -> None:
    """Quantize one model and write it to a new folder, with a model card.

    `dllm_sweep.load_model(DIR)` gives the model with identical logits, and a sweep file can name
    the folder as a model of the method fp.
    """
    from dllm_sweep.progress.blocks import BlockBar, BlockLines
    from dllm_sweep.saving.folder import free_folder
    from dllm_sweep.saving.job import Machine, plan_job, run_job

    free_folder(out)
    job = plan_job(
        model=model,
        method=method,
        scheme=scheme,
        settings=settings,
        family=family,
        seed=seed,
        layout=layout,
    )
    machine = Machine(devices=devices, dtype=dtype, offload=offload)
    with BlockBar() if sys.stderr.isatty() else BlockLines(sys.stderr) as display:
        outcome = run_job(job, out, machine, display)
    _print(job, outcome, out, form)


def _print(job: Job, outcome: Outcome, out: Path, form: str) -> None:
    """Print what was made on standard output, and warnings beside it."""
    from dllm_sweep.reports.listing import Listing, show

    saved = outcome.saved
    row = {
        "folder": str(out),
        "model": str(job.model),
        "method": Path(job.method).name,
        "scheme": saved.recipe.scheme,
        "linears": outcome.linears,
        "average_bits": round(saved.average_bits, 3),
        "stored_bits": None if saved.stored_bits is None else round(saved.stored_bits, 3),
        "bytes": saved.bytes,
        "seconds": round(outcome.seconds, 1),
    }
    show(Listing(tuple(row), (tuple(row.values()),)), form)
    for warning in outcome.warnings:
        click.echo(f"warning: {warning}", err=True)
