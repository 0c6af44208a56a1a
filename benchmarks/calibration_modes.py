"""What calibration modes do to a quantized model: the table of docs/calibration.md.

    python benchmarks/calibration_modes.py --model llada-tiny --scheme w2a16-g128 --out modes.json

The full-precision model answers prompts of the embedded tasks. On the states that it is shown on
the way, quantized models are compared with it at masked positions: mean Kullback-Leibler divergence
(nats), and how often the likeliest token is the same. With `--limit N` tiny_math is scored, too.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import click
import torch
from torch import Tensor

import dllm_sweep
from dllm_sweep import load_model
from dllm_sweep.decoding import generate
from dllm_sweep.decoding.batching import begin_of_text
from dllm_sweep.evaluation.evaluate import evaluate_task
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import CalibrationSpec, DecodingSpec, TaskSpec

TASKS = Path(dllm_sweep.__file__).parent / "evaluation" / "tasks"
PROMPTS = {"tiny_math": 64, "tiny_code": 32}
STEPS = (0, 4, 8, 12)
"""Steps of 16 whose states are looked at."""
_CROPS = CalibrationSpec(samples=128, length=128)
_CHAT = replace(_CROPS, source="tiny-chat", masking="chat", samples=256)
SETS = {
    "none": _CROPS,
    "uniform": replace(_CROPS, masking="uniform"),
    "prefix": replace(_CROPS, masking="prefix"),
    "trajectory": replace(
        _CROPS, masking="trajectory", samples=256, length=64, prompt_share=0.5, steps=16
    ),
    "trajectory of prompts": replace(
        _CHAT, masking="trajectory", prompts="chat", length=96, prompt_share=0.667, steps=16
    ),
    "chat": _CHAT,
    "prefix 1 : 0.7": replace(_CROPS, masking="prefix", visible_weight=0.7),
    "prefix 1 : 0": replace(_CROPS, masking="prefix", visible_weight=0.0),
    "chat 1 : 0.7": replace(_CHAT, visible_weight=0.7),
    "chat 1 : 0": replace(_CHAT, visible_weight=0.0),
}
"""Calibration sets of about 16,000 tokens each; `1 : w` are weights of masked and visible ones."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantized model beside full precision.

    Attributes:
        calibration: Which set.
        seed: Of the set.
        divergence: Mean over masked positions, nats.
        agreement: Share of masked positions with the same likeliest token.
        score: Of tiny_math; None if it was not asked for.
        seconds: Of calibrating and quantizing.
    """

    calibration: str
    seed: int
    divergence: float
    agreement: float
    score: float | None
    seconds: float


class Reference:
    """The full-precision model's runs, and what it predicts in them.

    Args:
        model: In full precision.
    """

    def __init__(self, model: DiffusionModel) -> None:
        prompts = list(_prompts(model))
        states: list[tuple[int, Sequence[int]]] = []
        generate(
            model,
            prompts,
            gen_length=32,
            steps=16,
            algorithm="entropy" if model.family.sampler == "timeline" else "low_confidence",
            on_step=lambda number, step, ids: (
                states.append((len(prompts[number]), ids)) if step in STEPS else None
            ),
        )
        lengths = sorted({len(ids) for _, ids in states})
        self._states = [[one for one in states if len(one[1]) == size] for size in lengths]
        self._expected = self._predictions(model)

    def compare(self, model: DiffusionModel) -> tuple[float, float]:
        """Give divergence and agreement of a quantized model."""
        expected, found = self._expected, self._predictions(model)
        divergence = (expected.exp() * (expected - found)).sum(-1).mean()
        same = expected.argmax(-1) == found.argmax(-1)
        return float(divergence), float(same.double().mean())

    def _predictions(self, model: DiffusionModel) -> Tensor:
        """Log-probabilities (P, V) float64 at the masked positions of all states."""
        parts = []
        for rows in self._states:
            ids = torch.tensor([ids for _, ids in rows], device=model.device)
            starts = torch.tensor([[start] for start, _ in rows], device=model.device)
            inside = torch.arange(ids.shape[1], device=model.device) >= starts
            masked = inside & (ids == model.special.mask_id)
            parts.append(model.logits(ids)[masked].double().log_softmax(-1).cpu())
        return torch.cat(parts)


def _prompts(model: DiffusionModel) -> Iterator[list[int]]:
    for task, count in PROMPTS.items():
        lines = (TASKS / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
        for line in lines[:count]:
            text = json.loads(line)["prompt"]
            ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
            yield [*begin_of_text(model), *ids]


def _measure(
    reference: Reference,
    name: str,
    method: str,
    scheme: str,
    device: str,
    chosen: tuple[str, int],
    limit: int,
) -> Row:
    label, seed = chosen
    model = load_model(name, device=device, dtype="float32")
    started = time.monotonic()
    text = replace(SETS[label], seed=seed)
    dllm_sweep.quantize(model, method=method, scheme=scheme, calibration=text)
    seconds = time.monotonic() - started
    divergence, agreement = reference.compare(model)
    score = None
    if limit:
        task = TaskSpec(name="tiny_math", limit=limit)
        score = evaluate_task(model, task, DecodingSpec(), seed=0, batch_size=64).metrics[0].value
    return Row(
        calibration=label,
        seed=seed,
        divergence=divergence,
        agreement=agreement,
        score=score,
        seconds=seconds,
    )


def _summary(rows: Sequence[Row]) -> Iterator[str]:
    yield "| calibration | divergence | same token | tiny_math |"
    yield "|---|---|---|---|"
    for label in dict.fromkeys(row.calibration for row in rows):
        own = [row for row in rows if row.calibration == label]
        spread = stdev(row.divergence for row in own) if len(own) > 1 else 0.0
        scores = [row.score for row in own if row.score is not None]
        yield (
            f"| {label} | {mean(row.divergence for row in own):.3f} ± {spread:.3f}"
            f" | {mean(row.agreement for row in own):.1%}"
            f" | {f'{mean(scores):.1%}' if scores else ''} |"
        )


@click.command()
@click.option("--model", "name", default="llada-tiny")
@click.option("--method", default="gptq")
@click.option("--scheme", default="w2a16-g128")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu")
@click.option("--seeds", default=3, help="Calibration sets of each kind.")
@click.option("--only", multiple=True, type=click.Choice(list(SETS)), help="Not all kinds.")
@click.option("--limit", default=0, help="Items of tiny_math; 0 scores none.")
@click.option("--out", type=click.Path(path_type=Path), help="Rows as JSON lines, added.")
def main(
    name: str,
    method: str,
    scheme: str,
    device: str,
    seeds: int,
    only: tuple[str, ...],
    limit: int,
    out: Path | None,
) -> None:
    """Quantize with every kind of calibration set and print a table."""
    reference = Reference(load_model(name, device=device, dtype="float32"))
    rows = []
    for label in only or SETS:
        for seed in range(seeds):
            row = _measure(reference, name, method, scheme, device, (label, seed), limit)
            rows.append(row)
            click.echo(f"{row.calibration} {row.seed}: {row.divergence:.3f}", err=True)
            if out is not None:
                with out.open("a", encoding="utf-8") as opened:
                    opened.write(json.dumps(asdict(row)) + "\n")
    click.echo("\n".join(_summary(rows)))


if __name__ == "__main__":
    main()
