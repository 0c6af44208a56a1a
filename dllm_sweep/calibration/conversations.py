"""Prompts and answers as token ids of a model, drawn from a source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

import torch
from torch import Generator

from dllm_sweep.calibration.drawing import POOL, tokenizer_of
from dllm_sweep.calibration.sources import records
from dllm_sweep.decoding.batching import begin_of_text
from dllm_sweep.errors import CalibrationError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import CalibrationSpec

T = TypeVar("T")


def draw(
    spec: CalibrationSpec,
    generator: Generator,
    options: Sequence[str],
    count: int,
    encode: Callable[..., T | None],
) -> list[T]:
    """Draw records in random order.

    Args:
        spec: The source.
        generator: Draws the order.
        options: Fields of the spec that name the columns.
        count: How many records are wanted; they come from the first `POOL` times as many.
        encode: Given a text of each column, gives what is wanted of the record, or None if it is
            too long.

    Raises:
        CalibrationError: If the source cannot be read or too few records are short enough.
    """
    pool = list(islice(records(spec, options), POOL * count))
    order = torch.randperm(len(pool), generator=generator).tolist()
    encoded = (encode(*pool[place]) for place in order)
    found = list(islice((one for one in encoded if one is not None), count))
    if len(found) < count:
        raise CalibrationError(
            f"calibration text {spec.source!r}: {len(found)} of {len(pool)} prompts leave room for"
            f" an answer in {spec.length} tokens, but {count} are needed: raise `length` or ask for"
            " fewer samples"
        )
    return found


def prompt_ids(model: DiffusionModel, prompt: str) -> list[int]:
    """Write a prompt by the checkpoint's chat template if it has one, else as it stands, behind
    begin-of-text where the family has it."""
    read = tokenizer_of(model)
    if read.chat_template is not None:
        return model.chat_prompt(prompt)
    return [*begin_of_text(model), *read(prompt, add_special_tokens=False)["input_ids"]]


def answer_ids(model: DiffusionModel, answer: str) -> list[int]:
    """Write an answer with what ends it: a turn's end after a chat template, else a text's."""
    read, special = tokenizer_of(model), model.special
    turn = read.chat_template is not None and special.turn_end_id is not None
    end = special.turn_end_id if turn else special.end_ids[0]
    return [*read(answer, add_special_tokens=False)["input_ids"], end]
