"""Prompts with their answers, hidden in part: each token of an answer with probability t.

t is uniform in (0, 1] for each conversation, and prompts stay visible, as in the fine-tuning of
instruction models (arXiv 2502.09992, section 2). A prompt is written by the checkpoint's chat
template where it has one, else it stands as it is; the answer ends with the token that ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dllm_sweep.calibration.base import WEIGHTS, ProgressCallback
from dllm_sweep.spec import CalibrationSpec

if TYPE_CHECKING:
    from torch import Generator

    from dllm_sweep.calibration.batch import CalibrationBatch
    from dllm_sweep.models.base import DiffusionModel


class ChatMasking:
    """Conversations of different lengths, one a sequence, padded."""

    options = ("prompt_field", "answer_field", *WEIGHTS)
    reads_model = False

    def sequences(
        self,
        spec: CalibrationSpec,
        model: DiffusionModel,
        generator: Generator,
        progress: ProgressCallback | None = None,
    ) -> CalibrationBatch:
        """Choose conversations, then draw a rate for each, then the tokens of its answer.

        Raises:
            CalibrationError: If the text cannot be read or too few prompts are shorter than
                `spec.length`.
        """
        import torch

        from dllm_sweep.calibration import drawing
        from dllm_sweep.calibration.batch import CalibrationBatch
        from dllm_sweep.decoding.batching import pad

        rows = _rows(spec, model, generator)
        ids, shown = pad(
            [[*prompt, *answer] for prompt, answer in rows],
            model.special.pad_id,
            left=False,
            device=torch.device("cpu"),
        )
        places = torch.arange(ids.shape[1])
        starts = torch.tensor([[len(prompt)] for prompt, _ in rows])
        ends = torch.tensor([[len(prompt) + len(answer)] for prompt, answer in rows])
        masked = drawing.chosen(
            drawing.uniform_rates(len(rows), generator), ids.shape[1], generator
        )
        masked &= (places >= starts) & (places < ends)
        return CalibrationBatch(
            input_ids=ids.masked_fill(masked, model.special.mask_id),
            attention_mask=shown,
            masked=masked,
        )


PLUGIN = ChatMasking()

_Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def _rows(spec: CalibrationSpec, model: DiffusionModel, generator: Generator) -> list[_Row]:
    """Draw conversations whose prompt leaves room for an answer, which is cut at the length."""
    from dllm_sweep.calibration import conversations

    def encode(prompt: str, answer: str) -> _Row | None:
        first = conversations.prompt_ids(model, prompt)
        room = spec.length - len(first)
        return (first, conversations.answer_ids(model, answer)[:room]) if room > 0 else None

    fields = ("prompt_field", "answer_field")
    return conversations.draw(spec, generator, fields, spec.samples, encode)
