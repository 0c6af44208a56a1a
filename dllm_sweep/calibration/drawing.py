"""What masking modes are made of: crops of text, rates, and tokens chosen at these rates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.sources import texts
from dllm_sweep.errors import CalibrationError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import CalibrationSpec

POOL = 16
"""Samples are drawn from the first `POOL` times as much text as they need in all: a source may be
larger than can be read."""
LEAST_RATE = 1e-3


def crops(
    spec: CalibrationSpec, model: DiffusionModel, generator: Generator, count: int | None = None
) -> Tensor:
    """Cut crops at random places of the documents, which are joined with the end-of-text token.

    Args:
        spec: The text, and how long a crop is.
        model: Its tokenizer reads the text.
        generator: Draws the places.
        count: How many; None is `spec.samples`.

    Returns:
        (count, spec.length) int64.

    Raises:
        CalibrationError: If the text cannot be read or is too short.
    """
    count = spec.samples if count is None else count
    tokens, needed = _tokens(spec, model, count), count * spec.length
    if len(tokens) < needed:
        raise CalibrationError(
            f"calibration text {spec.source!r} holds {len(tokens)} tokens, but {count}"
            f" samples of {spec.length} need {needed}: ask for fewer or shorter samples"
        )
    starts = torch.randint(len(tokens) - spec.length + 1, (count, 1), generator=generator)
    return tokens[starts + torch.arange(spec.length)]


def hide(ids: Tensor, masked: Tensor, model: DiffusionModel) -> CalibrationBatch:
    """Put mask tokens into ids (N, L) where `masked` (N, L) is True."""
    return CalibrationBatch(
        input_ids=ids.masked_fill(masked, model.special.mask_id),
        attention_mask=None,
        masked=masked,
    )


def uniform_rates(count: int, generator: Generator) -> Tensor:
    """Draw rates uniform in (0, 1], at least `LEAST_RATE`: (count, 1) float32."""
    return LEAST_RATE + (1 - LEAST_RATE) * torch.rand(count, 1, generator=generator)


def even_rates(count: int) -> Tensor:
    """Give the rates 1/count, 2/count, ..., 1: (count, 1) float64."""
    return torch.arange(1, count + 1, dtype=torch.float64)[:, None] / count


def chosen(rates: Tensor, length: int, generator: Generator) -> Tensor:
    """Choose each of `length` tokens with its row's rate (N, 1): (N, length) bool."""
    return torch.rand(len(rates), length, generator=generator) < rates


def tokenizer_of(model: DiffusionModel) -> Any:
    """Give the model's tokenizer.

    Raises:
        CalibrationError: If it has none.
    """
    if model.tokenizer is None:
        raise CalibrationError(f"{model.name} has no tokenizer, so it cannot read text")
    return model.tokenizer


def _tokens(spec: CalibrationSpec, model: DiffusionModel, count: int) -> Tensor:
    read = tokenizer_of(model)
    tokens: list[int] = []
    for text in texts(spec):
        tokens += read(text, add_special_tokens=False)["input_ids"]
        tokens.append(model.special.end_ids[0])
        if len(tokens) >= POOL * count * spec.length:
            break
    return torch.tensor(tokens, dtype=torch.int64)
