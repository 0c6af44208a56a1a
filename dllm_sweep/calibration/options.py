"""Which calibration options go together; without torch, so that planning can refuse the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from dllm_sweep import plugins
from dllm_sweep.calibration.base import WEIGHTS
from dllm_sweep.calibration.sources import check_columns
from dllm_sweep.catalog import USUAL_ALGORITHM
from dllm_sweep.decoding.options import check_decoding
from dllm_sweep.errors import CalibrationError, InputError
from dllm_sweep.spec import CalibrationSpec, DecodingSpec

KIND = "masking"
_DEFAULTS = {one.name: one.default for one in fields(CalibrationSpec)}
_OF_ALL = ("source", "samples", "length", "masking", "seed", "split", "subset", "digest")
"""Fields that mean something in every mode."""
OPTIONS = tuple(name for name in _DEFAULTS if name not in _OF_ALL)
"""Fields that only some modes read."""
STATES = 8
"""Samples that a run gives where the file does not say which."""
_USUAL_BLOCK = DecodingSpec.block_length
_COLUMNS = ("text_field", "prompt_field", "answer_field")
PROMPTS = ("text", "chat")
"""What a model may continue: fronts of crops, or prompts of conversations."""
_LEAST_STEPS, _LEAST_STEPS_OF_A_BLOCK = 32, 4

Problem = tuple[str, str]
"""A field of the spec, and what is wrong with it."""


def problems(spec: CalibrationSpec) -> Iterator[Problem]:
    """Say what is wrong with the options of a calibration set, whatever the model.

    Raises:
        UnknownName: If there is no such masking mode.
    """
    known = plugins.load(KIND, spec.masking).options
    for name in OPTIONS:
        if getattr(spec, name) == _DEFAULTS[name]:
            continue
        if name not in known:
            yield name, f"masking {spec.masking!r} does not read it; {_readers(name)}"
        elif name in _COLUMNS and name not in columns(spec):
            yield name, f"with prompts {spec.prompts!r}, {' and '.join(columns(spec))} is read"
    if spec.prompts not in PROMPTS:
        yield "prompts", f"must be {' or '.join(PROMPTS)}, not {spec.prompts!r}"
    if not 0 <= spec.prompt_share < 1:
        yield "prompt_share", f"must be at least 0 and below 1, not {spec.prompt_share}"
    for name in WEIGHTS:
        weight = getattr(spec, name)
        if not (math.isfinite(weight) and weight >= 0):
            yield name, f"must be finite and at least 0, not {weight}"
    if spec.masked_weight == spec.visible_weight == 0:
        yield "visible_weight", "is 0 like masked_weight: then no token counts"
    wrong = [ratio for ratio in spec.mask_ratios if not 0 < ratio <= 1]
    if wrong:
        yield "mask_ratios", f"must be above 0 and at most 1, not {wrong[0]}"
    for name in ("steps", "block_length"):
        count = getattr(spec, name)
        if count is not None and count < 1:
            yield name, f"must be at least 1, not {count}"


def columns(spec: CalibrationSpec) -> tuple[str, ...]:
    """Name the fields of the spec that name columns which are read."""
    known = plugins.load(KIND, spec.masking).options
    unread = "prompt_field" if spec.prompts == "text" else "text_field"
    choice = {unread} if "prompts" in known else set()
    return tuple(name for name in _COLUMNS if name in known and name not in choice)


def column_problems(spec: CalibrationSpec) -> Iterator[Problem]:
    """Look for the columns that the mode reads, in the first record of a local source."""
    for name in columns(spec):
        try:
            check_columns(spec, (name,))
        except CalibrationError as error:
            yield name, str(error)


def check_calibration(spec: CalibrationSpec) -> None:
    """Refuse options that do not go together.

    Raises:
        CalibrationError: It names the first option that is wrong.
        UnknownName: If there is no such masking mode.
    """
    for name, problem in problems(spec):
        joint = " " if problem.startswith(("is ", "must ")) else ": "
        raise CalibrationError(f"calibration {name}{joint}{problem}")


def refusal(spec: CalibrationSpec, sampler: str, block_size: int | None) -> str | None:
    """Say why a model cannot be calibrated this way, or None if it can.

    Args:
        spec: The calibration set.
        sampler: The model's usual sampler.
        block_size: Tokens in a block of the model's attention; None is full attention.
    """
    if not plugins.load(KIND, spec.masking).reads_model:
        return None
    if prompt_tokens(spec) == 0:
        return f"masking {spec.masking} needs a prompt: raise prompt_share {spec.prompt_share}"
    if block_size is not None and spec.length % block_size:
        return f"length {spec.length} must be a multiple of {block_size}, the block of attention"
    if spec.block_length is not None and sampler != "blockwise":
        return f"block_length: the {sampler} sampler, which the model uses, has no blocks"
    try:
        check_decoding(decoding_of(spec, sampler, block_size), block_size=block_size)
    except InputError as error:
        return f"masking {spec.masking}: {error}"
    return None


def prompt_tokens(spec: CalibrationSpec) -> int:
    """How many tokens at the front of each sequence stay visible."""
    # 0.29 x 100 is 28.999999999999996.
    return math.floor(round(spec.prompt_share * spec.length, 6))


def decoding_of(spec: CalibrationSpec, sampler: str, block_size: int | None) -> DecodingSpec:
    """Say how the continuation of a crop is written, by the rule that the sampler's authors use."""
    window = spec.length - prompt_tokens(spec)
    whole = sampler != "blockwise" or window % _USUAL_BLOCK
    usual = window if whole else _USUAL_BLOCK
    block_length = spec.block_length or block_size or usual
    blocks = max(window // block_length, 1)
    of_a_block = max(math.ceil(_LEAST_STEPS / blocks), _LEAST_STEPS_OF_A_BLOCK)
    return DecodingSpec(
        gen_length=window,
        steps=spec.steps or blocks * min(block_length, of_a_block),
        block_length=block_length,
        algorithm=USUAL_ALGORITHM[sampler],
        sampler=sampler,
    )


def states_of_a_run(spec: CalibrationSpec) -> int:
    """How many samples one run of a model gives at most."""
    return len(spec.mask_ratios) or STATES


def written_tokens(spec: CalibrationSpec) -> int:
    """Tokens that pass through a model which has to write first; 0 if it need not."""
    if not plugins.load(KIND, spec.masking).reads_model:
        return 0
    runs = math.ceil(spec.samples / states_of_a_run(spec))
    return runs * decoding_of(spec, "blockwise", None).steps * spec.length


def clean(spec: CalibrationSpec) -> CalibrationSpec:
    """The same text with nothing hidden."""
    hidden: dict[str, Any] = {name: _DEFAULTS[name] for name in OPTIONS if name != "text_field"}
    return replace(spec, masking="none", **hidden)


def _readers(name: str) -> str:
    readers = [mode for mode in plugins.names(KIND) if name in plugins.load(KIND, mode).options]
    return f"it is for {', '.join(readers)}"
