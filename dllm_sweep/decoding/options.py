"""Which decoding options go together; without torch, so that planning can refuse the others."""

from __future__ import annotations

import math
from dataclasses import fields

from dllm_sweep import plugins
from dllm_sweep.errors import InputError
from dllm_sweep.spec import DecodingSpec

ALGORITHM = "decoding algorithm"
SAMPLERS = ("blockwise", "timeline")
CACHES = ("none", "prefix", "dual")

_ONLY = {
    "blockwise": ("cfg_scale", "forbid_end", "defer_end", "factor", "cache"),
    "timeline": ("top_p", "top_k", "algorithm_temperature"),
}
"""Options that one sampler has and the other has not."""
_PROBABILITY = {"blockwise": "low_confidence", "timeline": "maskgit_plus"}
"""The algorithm that ranks by the probability that a threshold is compared with."""
_DEFAULTS = {one.name: one.default for one in fields(DecodingSpec)}


def check_decoding(decoding: DecodingSpec, *, block_size: int | None = None) -> None:
    """Make sure that the options are in range and go together.

    Args:
        decoding: The options.
        block_size: Tokens in a block of the model's attention; None is full attention.

    Raises:
        InputError: If a number does not fit, or two options exclude each other.
        UnknownName: If there is no such algorithm.
    """
    problem = _range_problem(decoding)
    if problem is None and sampler_of(decoding.algorithm) != decoding.sampler:
        problem = _foreign_algorithm(decoding)
    if problem is None:
        problem = _sampler_problem(decoding) or _attention_problem(decoding, block_size)
    if problem is not None:
        raise InputError(f"decoding: {problem}")


def sampler_of(algorithm: str) -> str:
    """Which sampler an algorithm belongs to.

    Raises:
        UnknownName: If there is no such algorithm.
        InputError: If it names no sampler.
    """
    sampler = getattr(plugins.load(ALGORITHM, algorithm), "sampler", None)
    if sampler not in SAMPLERS:
        raise InputError(
            f"decoding algorithm {algorithm!r} names no sampler: give it the attribute"
            f" sampler, {' or '.join(map(repr, SAMPLERS))}"
        )
    return str(sampler)


def algorithms_of(sampler: str) -> tuple[str, ...]:
    """The names of a sampler's algorithms."""
    return tuple(name for name in plugins.names(ALGORITHM) if sampler_of(name) == sampler)


def _range_problem(decoding: DecodingSpec) -> str | None:
    """What is wrong with a single option."""
    if min(decoding.gen_length, decoding.steps, decoding.block_length) < 1:
        return "gen_length, steps and block_length must be at least 1"
    if decoding.sampler not in SAMPLERS:
        return f"sampler {decoding.sampler!r} is unknown: {' or '.join(SAMPLERS)}"
    if decoding.cache not in CACHES:
        return f"cache {decoding.cache!r} is unknown: {', '.join(CACHES)}"
    for name in ("temperature", "algorithm_temperature", "cfg_scale"):
        value = getattr(decoding, name)
        if not (math.isfinite(value) and value >= 0):
            return f"{name} {value} must be finite and at least 0"
    for name in ("top_p", "threshold"):
        value = getattr(decoding, name)
        if value is not None and not 0 < value <= 1:
            return f"{name} {value} must be above 0 and at most 1"
    if decoding.top_k is not None and decoding.top_k < 1:
        return f"top_k {decoding.top_k} must be at least 1"
    if decoding.factor is not None and not (math.isfinite(decoding.factor) and decoding.factor > 0):
        return f"factor {decoding.factor} must be finite and above 0"
    return None


def _foreign_algorithm(decoding: DecodingSpec) -> str:
    name, sampler = decoding.algorithm, decoding.sampler
    return (
        f"algorithm {name!r} belongs to the {sampler_of(name)} sampler: set sampler to that, or"
        f" take one of {', '.join(algorithms_of(sampler))}"
    )


def _sampler_problem(decoding: DecodingSpec) -> str | None:
    """What the chosen sampler cannot do."""
    other = SAMPLERS[1 - SAMPLERS.index(decoding.sampler)]
    foreign = [name for name in _ONLY[other] if getattr(decoding, name) != _DEFAULTS[name]]
    if foreign:
        return f"{foreign[0]} belongs to the {other} sampler, not to {decoding.sampler}"
    if decoding.threshold is not None and decoding.factor is not None:
        return "threshold and factor exclude each other"
    for name in ("threshold", "factor"):
        needed = _PROBABILITY[decoding.sampler]
        if getattr(decoding, name) is not None and decoding.algorithm != needed:
            return f"{name} compares probabilities: it needs algorithm {needed}"
    check = _blockwise_problem if decoding.sampler == "blockwise" else _timeline_problem
    return check(decoding)


def _blockwise_problem(decoding: DecodingSpec) -> str | None:
    gen_length, steps, block_length = decoding.gen_length, decoding.steps, decoding.block_length
    if gen_length % block_length:
        return f"block_length {block_length} does not divide gen_length {gen_length}"
    blocks = gen_length // block_length
    if steps % blocks:
        return f"steps {steps} do not divide into the {blocks} blocks of the window"
    if steps > gen_length:
        return f"steps {steps} are more than the gen_length {gen_length} tokens to unmask"
    if decoding.cache == "none":
        return None
    if decoding.cfg_scale:
        return "cfg_scale and cache exclude each other: guidance asks about two sequences"
    adaptive = decoding.threshold is not None or decoding.factor is not None
    if steps == blocks and block_length > 1 and not adaptive:
        return f"cache {decoding.cache} is never read with one step a block: take more steps"
    return None


def _timeline_problem(decoding: DecodingSpec) -> str | None:
    chance = decoding.algorithm_temperature > 0
    if chance and decoding.algorithm == "origin":
        return "algorithm origin draws its positions already: it has no algorithm_temperature"
    if decoding.threshold is None:
        return None
    if chance:
        return "threshold and algorithm_temperature exclude each other"
    if decoding.gen_length % decoding.steps:
        return (
            f"threshold needs steps that divide gen_length {decoding.gen_length}, not"
            f" {decoding.steps}"
        )
    return None


def _attention_problem(decoding: DecodingSpec, block_size: int | None) -> str | None:
    """What the model's attention does not allow."""
    if block_size is None:
        return None
    if decoding.sampler != "blockwise":
        return "a model with block-causal attention is decoded by the blockwise sampler"
    if decoding.block_length != block_size:
        return (
            f"block_length {decoding.block_length} must be {block_size}, the block of the model's"
            " attention"
        )
    if decoding.cache != "none" or decoding.cfg_scale:
        return (
            "cache and cfg_scale are for full attention: under block-causal attention finished"
            " blocks are kept anyway, and exactly"
        )
    return None
