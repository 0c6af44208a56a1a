"""LLaDA's block-wise sampler (arXiv 2502.09992, section 2.4).

The window of mask tokens behind the prompt is written block by block from left to right. In
each step the model predicts the whole sequence, and the positions of the block that the
algorithm rates highest are written for good.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_sweep import plugins
from dllm_sweep.decoding.base import DecodingAlgorithm, ItemsCallback
from dllm_sweep.decoding.batching import batches, check_ids, check_length, pad
from dllm_sweep.decoding.options import ALGORITHM, check_decoding
from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

Prompts = Sequence[Sequence[int]]


def generate(
    model: DiffusionModel,
    prompts: Prompts,
    *,
    gen_length: int = 32,
    steps: int = 32,
    block_length: int = 32,
    temperature: float = 0.0,
    algorithm: str = "low_confidence",
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: ItemsCallback | None = None,
) -> list[list[int]]:
    """Write `gen_length` tokens behind each prompt.

    In float32 the answer to a prompt depends neither on the other prompts nor on the batch size.

    Args:
        model: The model.
        prompts: Token ids, of any lengths; they are not changed.
        gen_length: Tokens to write.
        steps: Model calls over the whole window.
        block_length: Tokens in a block; it divides `gen_length`.
        temperature: Scale of the Gumbel noise on the logits; 0 takes the likeliest token.
        algorithm: Name of the rule that chooses the positions, a file beside this one.
        seeds: Seed of each prompt's random numbers; None is 0, 1, 2 and so on.
        batch_size: Prompts in a batch; None is as many as fit.
        progress: Called after each batch.

    Returns:
        The tokens written for each prompt, `gen_length` each, end-of-text tokens included.

    Raises:
        InputError: If the options do not fit together or a prompt does not fit the model.
    """
    decoding = DecodingSpec(
        gen_length=gen_length,
        steps=steps,
        block_length=block_length,
        temperature=temperature,
        algorithm=algorithm,
    )
    check_decoding(decoding)
    seeds = range(len(prompts)) if seeds is None else seeds
    _check_prompts(model, prompts, seeds, gen_length)
    rule: DecodingAlgorithm = plugins.load(ALGORITHM, algorithm)
    answers: dict[int, list[int]] = {}
    for rows in batches(model, [len(prompt) + gen_length for prompt in prompts], batch_size):
        generators = [torch.Generator().manual_seed(seeds[row]) for row in rows]
        written = _write(model, [prompts[row] for row in rows], decoding, rule, generators)
        answers.update(zip(rows, written.tolist(), strict=True))
        if progress is not None:
            progress(len(answers), len(prompts))
    return [answers[row] for row in range(len(prompts))]


def transfer_counts(masked: int, steps: int) -> list[int]:
    """Share `masked` positions among `steps`, the first steps taking what is left over."""
    share, rest = divmod(masked, steps)
    return [share + (step < rest) for step in range(steps)]


@torch.inference_mode()
def _write(
    model: DiffusionModel,
    prompts: Prompts,
    decoding: DecodingSpec,
    rule: DecodingAlgorithm,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Write one batch; give its windows, (B, gen_length) int64."""
    # The window stays visible to its end: a model trained to end texts early has learned from
    # the tail. Only the padding before shorter prompts is hidden.
    window = [model.special.mask_id] * decoding.gen_length
    rows = [[*prompt, *window] for prompt in prompts]
    ids, shown = pad(rows, model.special.pad_id, left=True, device=model.device)
    first, length = ids.shape[1] - decoding.gen_length, decoding.block_length
    steps = decoding.steps * length // decoding.gen_length
    for start in range(first, ids.shape[1], length):
        for count in transfer_counts(length, steps):
            block = slice(start, start + length)
            logits = model.logits(ids, shown)[:, block].double()
            tokens = _candidates(logits, decoding.temperature, generators)
            confidence = rule.confidence(logits, tokens, generators)
            _transfer(ids[:, block], tokens, confidence, count, model.special.mask_id)
    return ids[:, first:]


def _candidates(
    logits: Tensor, temperature: float, generators: Sequence[torch.Generator]
) -> Tensor:
    """Choose a token for each position, (B, W) int64, from logits (B, W, V) float64."""
    if temperature == 0:
        return logits.argmax(-1)
    # Gumbel-max needs float64: the tails of float32 noise change what is sampled.
    shape = logits.shape[1:]
    uniform = [torch.rand(shape, generator=one, dtype=torch.float64) for one in generators]
    noise = -torch.log(-torch.log(torch.stack(uniform).to(logits.device)))
    return (logits + temperature * noise).argmax(-1)


def _transfer(block: Tensor, tokens: Tensor, confidence: Tensor, count: int, mask_id: int) -> None:
    """Write the `count` most confident masked positions of each row into `block` in place."""
    masked = block == mask_id
    ranked = confidence.masked_fill(~masked, -torch.inf)
    # A stable sort, unlike topk, keeps the leftmost of equal positions first.
    order = ranked.sort(dim=-1, descending=True, stable=True).indices
    chosen = torch.zeros_like(masked).scatter(1, order[:, :count], True) & masked
    block.copy_(torch.where(chosen, tokens, block))


def _check_prompts(
    model: DiffusionModel, prompts: Prompts, seeds: Sequence[int], gen_length: int
) -> None:
    if len(seeds) != len(prompts):
        raise InputError(f"{len(seeds)} seeds for {len(prompts)} prompts: give one each, or none")
    for number, prompt in enumerate(prompts):
        check_ids(model, prompt, f"prompt {number}")
        check_length(model, len(prompt) + gen_length, f"prompt {number} with its answer")
