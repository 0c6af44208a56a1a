"""From text to batches of token ids: crops of one length, some of their tokens masked."""

from __future__ import annotations

import torch
from torch import Tensor

from dllm_sweep.calibration.batch import CalibrationBatch
from dllm_sweep.calibration.masking import MODES
from dllm_sweep.calibration.sources import texts
from dllm_sweep.errors import CalibrationError, UnknownName
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import CalibrationSpec

POOL = 16
"""Crops are drawn from the first `POOL` times as many tokens as they need in all: a source may be
larger than can be read."""


def load(
    spec: CalibrationSpec, model: DiffusionModel, *, batch_size: int
) -> tuple[CalibrationBatch, ...]:
    """Read, tokenize, cut and mask calibration text.

    The documents are joined with the end-of-text token, and crops are cut at random places. The
    sequences and their masks depend on `spec` and the tokenizer alone, not on `batch_size`.

    Raises:
        CalibrationError: If the text cannot be read or is too short, or the crops are longer than
            the model's sequences.
        UnknownName: If the masking mode does not exist.
    """
    if spec.masking not in MODES:
        raise UnknownName("masking", spec.masking, MODES)
    if spec.length > model.max_length:
        raise CalibrationError(
            f"calibration length {spec.length} is more than the {model.max_length} tokens that"
            f" {model.name} can read"
        )
    generator = torch.Generator().manual_seed(spec.seed)
    crops = _crops(_tokens(spec, model), spec, generator)
    masked = MODES[spec.masking](spec.samples, spec.length, generator)
    ids = crops.masked_fill(masked, model.special.mask_id)
    return tuple(
        CalibrationBatch(input_ids=part, attention_mask=None, masked=mask)
        for part, mask in zip(ids.split(batch_size), masked.split(batch_size), strict=True)
    )


def _tokens(spec: CalibrationSpec, model: DiffusionModel) -> Tensor:
    if model.tokenizer is None:
        raise CalibrationError(f"{model.name} has no tokenizer, so it cannot read text")
    tokens: list[int] = []
    for text in texts(spec):
        tokens += model.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens.append(model.special.end_ids[0])
        if len(tokens) >= POOL * spec.samples * spec.length:
            break
    return torch.tensor(tokens, dtype=torch.int64)


def _crops(tokens: Tensor, spec: CalibrationSpec, generator: torch.Generator) -> Tensor:
    needed = spec.samples * spec.length
    if len(tokens) < needed:
        raise CalibrationError(
            f"calibration text {spec.source!r} holds {len(tokens)} tokens, but {spec.samples}"
            f" samples of {spec.length} need {needed}: ask for fewer or shorter samples"
        )
    starts = torch.randint(len(tokens) - spec.length + 1, (spec.samples, 1), generator=generator)
    return tokens[starts + torch.arange(spec.length)]
