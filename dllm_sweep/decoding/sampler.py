"""Writing answers behind prompts: the entry of both samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dllm_sweep import plugins
from dllm_sweep.decoding import blockwise, timeline
from dllm_sweep.decoding.base import Generation, ItemsCallback, StepCallback, StopRule
from dllm_sweep.decoding.batching import batches, check_ids, check_length
from dllm_sweep.decoding.options import ALGORITHM, check_decoding, sampler_of
from dllm_sweep.decoding.window import Windows
from dllm_sweep.errors import InputError
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

Prompts = Sequence[Sequence[int]]

_SAMPLERS: dict[str, Callable[[Windows, Any], None]] = {
    "blockwise": blockwise.write,
    "timeline": timeline.write,
}


def generate(
    model: DiffusionModel,
    prompts: Prompts,
    *,
    gen_length: int = 32,
    steps: int = 32,
    block_length: int = 32,
    temperature: float = 0.0,
    algorithm: str = "low_confidence",
    sampler: str | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    algorithm_temperature: float = 0.0,
    cfg_scale: float = 0.0,
    forbid_end: bool = False,
    defer_end: bool = False,
    threshold: float | None = None,
    factor: float | None = None,
    cache: str = "none",
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    progress: ItemsCallback | None = None,
    on_step: StepCallback | None = None,
) -> list[list[int]]:
    """Write `gen_length` tokens behind each prompt.

    In float32 the answer to a prompt depends neither on the other prompts nor on the batch size.

    Args:
        model: The model.
        prompts: Token ids, of any lengths; they are not changed.
        gen_length: Tokens to write.
        steps: Model calls over the whole window.
        block_length: Tokens in a block; it divides `gen_length`.
        temperature: Scale of the Gumbel noise on the logits, or of Dream's softmax; 0 takes the
            likeliest token.
        algorithm: Name of the rule that chooses the positions, a file beside this one.
        sampler: `blockwise` or `timeline`; None is the algorithm's own.
        top_p: See `DecodingSpec`, as for all that follow.
        top_k: Sample from this many of the likeliest tokens.
        algorithm_temperature: Above 0, the timeline's positions are drawn.
        cfg_scale: Classifier-free guidance.
        forbid_end: Never write end-of-text.
        defer_end: Write end-of-text last.
        threshold: Write all positions of at least this probability.
        factor: Write as many positions as this bound allows.
        cache: `none`, `prefix` or `dual`.
        seeds: Seed of each prompt's random numbers; None is 0, 1, 2 and so on.
        batch_size: Prompts in a batch; None is as many as fit.
        progress: Called after each batch.
        on_step: Called for each row of each model call with (number of the prompt, step, ids that
            the model is shown).

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
        sampler=sampler_of(algorithm) if sampler is None else sampler,
        top_p=top_p,
        top_k=top_k,
        algorithm_temperature=algorithm_temperature,
        cfg_scale=cfg_scale,
        forbid_end=forbid_end,
        defer_end=defer_end,
        threshold=threshold,
        factor=factor,
        cache=cache,
    )
    job = _Job(model, prompts, decoding, seeds, stop=None, on_step=on_step)
    return [list(one.tokens) for one in job.run(batch_size, progress)]


def sample(
    model: DiffusionModel,
    prompts: Prompts,
    decoding: DecodingSpec,
    *,
    seeds: Sequence[int] | None = None,
    batch_size: int | None = None,
    stop: StopRule | None = None,
    plain: bool = False,
    progress: ItemsCallback | None = None,
    on_step: StepCallback | None = None,
) -> list[Generation]:
    """Write an answer behind each prompt, no further than it counts.

    What is written is never revised. So an answer is complete, and its row leaves the batch, as
    soon as the tokens in front of its first mask hold end-of-text or satisfy `stop`; up to there
    it is what `generate` writes.

    Args:
        model: The model.
        prompts: Token ids, of any lengths; they are not changed.
        decoding: How text is generated.
        seeds: Seed of each prompt's random numbers; None is 0, 1, 2 and so on.
        batch_size: Prompts in a batch; None is as many as fit.
        stop: Told the front of an answer whenever it has grown; None stops at end-of-text alone.
        plain: The reference that the savings are checked against: every model call computes the
            logits of all positions, and every window is written to its end.
        progress: Called after each batch with (prompts done, prompts in all).
        on_step: Called for each row of each model call with (number of the prompt, step, ids that
            the model is shown).

    Returns:
        One for each prompt.

    Raises:
        InputError: If the options do not fit together or a prompt does not fit the model.
    """
    rule = None if plain else stop or _never
    job = _Job(model, prompts, decoding, seeds, stop=rule, plain=plain, on_step=on_step)
    return job.run(batch_size, progress)


def _never(front: Sequence[int]) -> bool:
    return False


class _Job:
    """Prompts that are decoded alike."""

    def __init__(
        self,
        model: DiffusionModel,
        prompts: Prompts,
        decoding: DecodingSpec,
        seeds: Sequence[int] | None,
        *,
        stop: StopRule | None,
        plain: bool = False,
        on_step: StepCallback | None = None,
    ) -> None:
        check_decoding(decoding, block_size=model.block_size)
        self.model, self.prompts, self.decoding = model, prompts, decoding
        self.seeds = range(len(prompts)) if seeds is None else seeds
        self.stop, self.plain, self.on_step = stop, plain, on_step
        if len(self.seeds) != len(prompts):
            raise InputError(
                f"{len(self.seeds)} seeds for {len(prompts)} prompts: give one each, or none"
            )
        self.widths = [self._width(prompt) for prompt in prompts]
        for number, (prompt, width) in enumerate(zip(prompts, self.widths, strict=True)):
            check_ids(model, prompt, f"prompt {number}")
            check_length(model, len(prompt) + width, f"prompt {number} with its answer")

    def run(self, batch_size: int | None, progress: ItemsCallback | None) -> list[Generation]:
        """Decode batch by batch."""
        answers: dict[int, Generation] = {}
        lengths = [len(row) + size for row, size in zip(self.prompts, self.widths, strict=True)]
        reads = lengths if self.plain else [self._reads()] * len(lengths)
        for rows in batches(self.model, lengths, batch_size, reads):
            answers.update(zip(rows, self._write(rows), strict=True))
            if progress is not None:
                progress(len(answers), len(self.prompts))
        return [answers[row] for row in range(len(self.prompts))]

    @torch.inference_mode()
    def _write(self, rows: Sequence[int]) -> list[Generation]:
        windows = Windows(
            self.model,
            [self.prompts[row] for row in rows],
            [self.widths[row] for row in rows],
            self.decoding,
            [torch.Generator().manual_seed(self.seeds[row]) for row in rows],
            stop=self.stop,
            plain=self.plain,
            on_step=self._watcher(rows),
        )
        rule = plugins.load(ALGORITHM, self.decoding.algorithm)
        _SAMPLERS[self.decoding.sampler](windows, rule)
        return windows.generations()

    def _watcher(self, rows: Sequence[int]) -> StepCallback | None:
        """What a batch of these prompts calls with the number of its own row."""
        watch = self.on_step
        return None if watch is None else lambda row, step, ids: watch(rows[row], step, ids)

    def _width(self, prompt: Sequence[int]) -> int:
        """The window's tokens: under block-causal attention it ends where a block ends."""
        length = len(prompt) + self.decoding.gen_length
        return self.decoding.gen_length + -length % (self.model.block_size or 1)

    def _reads(self) -> int:
        """Positions of a row whose logits are read in one step."""
        blockwise = self.decoding.sampler == "blockwise"
        return self.decoding.block_length if blockwise else self.decoding.gen_length
