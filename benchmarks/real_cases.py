"""The cases of real_size.py: what is generated and scored, and the authors' steps beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dllm_sweep.models.base import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        model: Whose shape.
        what: What was done.
        path: By which of several ways that give the same.
        seconds: Wall time, the device's work included.
        unit: What there are `units` of.
        units: Steps, items, blocks or gigabytes.
        tokens: Positions that went through the model, without padding; None if not counted.
        gpu_gib: Most memory of the device that was taken at once, the weights included.
        note: What else was seen.
    """

    model: str
    what: str
    path: str = ""
    seconds: float
    unit: str
    units: float
    tokens: int | None = None
    gpu_gib: float
    note: str = ""

    @property
    def each(self) -> str:
        """Time for each of the units."""
        each = self.seconds / self.units
        return f"{1000 * each:.1f} ms/{self.unit}" if each < 10 else f"{each:.1f} s/{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Generating:
    """Prompts of one length and how they are answered."""

    batch: int
    prompt: int
    length: int
    steps: int
    block: int


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Questions with four choices of one length; `plain` of the `items` go the plain way, too."""

    name: str
    items: int
    plain: int
    context: int
    answer: int
    draws: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What is run."""

    generating: tuple[Generating, ...]
    scoring: tuple[Scoring, ...]
    calibration: tuple[int, int]


REAL = Sizes(
    generating=(
        Generating(batch=1, prompt=172, length=128, steps=128, block=32),
        Generating(batch=8, prompt=172, length=128, steps=64, block=32),
        Generating(batch=1, prompt=1022, length=128, steps=64, block=32),
        Generating(batch=8, prompt=1022, length=128, steps=32, block=32),
    ),
    scoring=(
        Scoring(
            name="answers of 1 token, 1 draw", items=16, plain=16, context=600, answer=1, draws=1
        ),
        Scoring(name="answers of 2 tokens", items=32, plain=2, context=60, answer=2, draws=128),
        Scoring(name="answers of 20 tokens", items=4, plain=1, context=60, answer=20, draws=128),
    ),
    calibration=(64, 512),
)
TINY = Sizes(
    generating=(Generating(batch=2, prompt=9, length=16, steps=8, block=8),),
    scoring=(Scoring(name="answers of 2 tokens", items=3, plain=3, context=9, answer=2, draws=16),),
    calibration=(4, 32),
)


@torch.inference_mode()
def authors_steps(model: DiffusionModel, prompts: Tensor, case: Generating) -> Tensor:
    """Write answers with the authors' arithmetic in every step, as their samplers have it.

    LLaDA: logits and float64 probabilities of all positions. Dream: logits of all positions,
    probabilities and entropies of the masked ones.

    Args:
        model: The model.
        prompts: (B, P) int64.
        case: The window and its steps.

    Returns:
        (B, P + length) int64.
    """
    mask = model.special.mask_id
    window = torch.full((case.batch, case.length), mask, device=model.device)
    ids, each = torch.cat((prompts, window), dim=1), case.length // case.steps
    rate = _entropies if model.family.sampler == "timeline" else _probabilities
    for step in range(case.steps):
        logits = model.logits(ids)
        tokens, sure = rate(logits, ids == mask)
        if model.family.sampler == "blockwise":
            sure[:, case.prompt + case.block * (1 + step * each // case.block) :] = -torch.inf
        places = sure.topk(each, dim=1).indices
        ids = ids.scatter(1, places, tokens.gather(1, places))
    return ids


def _probabilities(logits: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    tokens = logits.argmax(-1)
    sure = logits.double().softmax(-1).gather(-1, tokens[..., None])[..., 0]
    return tokens, sure.masked_fill(~masked, -torch.inf)


def _entropies(logits: Tensor, masked: Tensor) -> tuple[Tensor, Tensor]:
    likely = logits[masked].softmax(-1)
    tokens = torch.zeros_like(masked, dtype=torch.int64)
    tokens[masked] = likely.argmax(-1)
    sure = torch.full(masked.shape, -torch.inf, device=masked.device)
    sure[masked] = (likely * (likely + 1e-10).log()).sum(-1).float()
    return tokens, sure


def random_ids(model: DiffusionModel, rows: int, length: int, *, seed: int) -> Tensor:
    """Draw ordinary tokens (rows, length); special ones stand at the end of both vocabularies."""
    generator = torch.Generator().manual_seed(seed)
    top = min(model.special.mask_id, *model.special.end_ids)
    return torch.randint(top, (rows, length), generator=generator).to(model.device)


def questions(model: DiffusionModel, case: Scoring) -> list[tuple[list[int], list[int]]]:
    """Draw contexts with four answers each."""
    contexts = random_ids(model, case.items, case.context, seed=1).tolist()
    answers = random_ids(model, 4 * case.items, case.answer, seed=2).tolist()
    # Dream's estimator never hides the last token: it is the end-of-text that evaluation appends.
    tail = [model.special.end_ids[0]] if model.family.estimator == "dream" else []
    return [(contexts[place // 4], [*answer, *tail]) for place, answer in enumerate(answers)]


def evict(files: Sequence[Path]) -> None:
    """Write files out and drop them from the page cache, so that they are read from the disk."""
    for file in files:
        with file.open("r+b") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
