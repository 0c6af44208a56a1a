"""Which decoding options go together; without torch, so that planning can refuse the others."""

from __future__ import annotations

import math

from dllm_sweep import plugins
from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.spec import DecodingSpec

ALGORITHM = "decoding algorithm"


def check_decoding(decoding: DecodingSpec) -> None:
    """Make sure that the window divides into blocks and the steps into the blocks' steps.

    Raises:
        InputError: If a number does not fit.
        UnknownName: If there is no such algorithm.
    """
    problem = _problem(decoding)
    if problem is not None:
        raise InputError(f"decoding: {problem}")
    if ".py:" not in decoding.algorithm and decoding.algorithm not in plugins.names(ALGORITHM):
        raise UnknownName(ALGORITHM, decoding.algorithm, plugins.names(ALGORITHM))


def _problem(decoding: DecodingSpec) -> str | None:
    gen_length, steps, block_length = decoding.gen_length, decoding.steps, decoding.block_length
    if min(gen_length, steps, block_length) < 1:
        return "gen_length, steps and block_length must be at least 1"
    if gen_length % block_length:
        return f"block_length {block_length} does not divide gen_length {gen_length}"
    blocks = gen_length // block_length
    if steps % blocks:
        return f"steps {steps} do not divide into the {blocks} blocks of the window"
    if steps > gen_length:
        return f"steps {steps} are more than the gen_length {gen_length} tokens to unmask"
    if not (math.isfinite(decoding.temperature) and decoding.temperature >= 0):
        return f"temperature {decoding.temperature} must be finite and at least 0"
    return None
