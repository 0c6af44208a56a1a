"""States of the model's own denoising: what it writes behind a prompt, as far as it has got.

In full precision the model continues visible prompts, the fronts of crops or the prompts of
conversations, with its family's usual sampler, greedily; of what it is shown in these runs, the
states with the wanted shares of mask tokens are kept. This is the temporal sampling of DLLMQuant
(arXiv 2508.14090): the tokens beside the masks are the model's own, chosen in its own order.

One run gives several samples. Without `mask_ratios`, the i-th of N samples, counted from 0, wants
the ratio (i + 1) / N, and a run gives 8 of them, evenly spread; with them, each run gives one
sample for each ratio. A state is the one whose number of masks is nearest, the earlier of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dllm_sweep.calibration.base import WEIGHTS, ProgressCallback
from dllm_sweep.calibration.options import (
    decoding_of,
    prompt_tokens,
    refusal,
    states_of_a_run,
)
from dllm_sweep.errors import CalibrationError
from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel


@dataclass(kw_only=True)
class State:
    """The state of a run that is nearest to what a sample wants, of those seen so far.

    Attributes:
        run: Which run.
        masks: How many mask tokens the sample wants.
        ids: The token ids; empty before the first state.
        distance: By how many mask tokens they miss it.
    """

    run: int
    masks: float
    ids: Sequence[int] = ()
    distance: float = field(default=math.inf)

    def see(self, ids: Sequence[int], masks: int) -> None:
        """Take a state if it is nearer."""
        distance = abs(masks - self.masks)
        if distance < self.distance:
            self.ids, self.distance = ids, distance


class TrajectoryMasking:
    """Continuations and answers on their way."""

    options = (
        "text_field",
        "prompts",
        "prompt_field",
        "prompt_share",
        "steps",
        "block_length",
        "mask_ratios",
        *WEIGHTS,
    )
    reads_model = True

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Draw a prompt for each run, let the model continue it, and keep states.

        Raises:
            CalibrationError: If the text cannot be read or is too short, or the model's sampler
                cannot write such a continuation.
        """
        import torch

        from dllm_sweep.calibration.batch import CalibrationBatch
        from dllm_sweep.decoding.batching import pad

        problem = refusal(spec, model.family.sampler, model.block_size)
        if problem is not None:
            raise CalibrationError(problem)
        samples = wanted(spec)
        runs = 1 + max(sample.run for sample in samples)
        prompts = _prompts(spec, model, generator, runs)
        _run(spec, model, prompts, samples, progress)
        rows = [sample.ids for sample in samples]
        ids, shown = pad(rows, model.special.pad_id, left=False, device=torch.device("cpu"))
        starts = torch.tensor([[len(prompts[sample.run])] for sample in samples])
        masked = (ids == model.special.mask_id) & (torch.arange(ids.shape[1]) >= starts)
        return CalibrationBatch(input_ids=ids, attention_mask=shown, masked=masked)


PLUGIN = TrajectoryMasking()


def wanted(spec: CalibrationSpec) -> list[State]:
    """Say for each sample from which run it comes and how many mask tokens it should have."""
    window, ratios = spec.length - prompt_tokens(spec), spec.mask_ratios
    each = states_of_a_run(spec)
    if ratios:
        pairs = [(n // each, ratios[n % each]) for n in range(spec.samples)]
    else:
        runs = math.ceil(spec.samples / each)
        pairs = [(n % runs, (n + 1) / spec.samples) for n in range(spec.samples)]
    return [State(run=run, masks=ratio * window) for run, ratio in pairs]


def _prompts(
    spec: CalibrationSpec, model: DiffusionModel, generator: Generator, count: int
) -> list[list[int]]:
    """Draw what the model continues: `prompt_tokens` of a crop, or at most so many of a prompt."""
    from dllm_sweep.calibration import conversations, drawing

    longest = prompt_tokens(spec)
    if spec.prompts == "text":
        found: list[list[int]] = drawing.crops(spec, model, generator, count)[:, :longest].tolist()
        return found

    def encode(prompt: str) -> list[int] | None:
        ids = conversations.prompt_ids(model, prompt)
        return ids if len(ids) <= longest else None

    return conversations.draw(spec, generator, ("prompt_field",), count, encode)


def _run(
    spec: CalibrationSpec,
    model: DiffusionModel,
    prompts: Sequence[Sequence[int]],
    samples: Sequence[State],
    progress: ProgressCallback | None,
) -> None:
    """Write behind the prompts, and show every sample the states of its run."""
    from dllm_sweep.decoding.sampler import generate

    decoding = decoding_of(spec, model.family.sampler, model.block_size)
    of_run: dict[int, list[State]] = {}
    for sample in samples:
        of_run.setdefault(sample.run, []).append(sample)

    def see(run: int, step: int, ids: Sequence[int]) -> None:
        masks = sum(one == model.special.mask_id for one in ids[len(prompts[run]) :])
        for sample in of_run[run]:
            sample.see(ids, masks)

    generate(
        model,
        prompts,
        gen_length=decoding.gen_length,
        steps=decoding.steps,
        block_length=decoding.block_length,
        algorithm=decoding.algorithm,
        progress=progress,
        on_step=see,
    )
