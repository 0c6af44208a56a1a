"""The bridge between lm-eval's requests and a diffusion language model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dllm_sweep.decoding import generate, log_likelihood
from dllm_sweep.errors import CheckpointError, InputError
from dllm_sweep.evaluation.work import Work
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec


class DiffusionLM(LM):
    """Answers lm-eval's requests with block-wise decoding and Monte-Carlo likelihoods.

    Args:
        model: The model, with a tokenizer.
        decoding: How text is generated; it takes the place of a task's own lengths and
            temperatures, so that all tasks of a sweep are decoded alike.
        draws: Monte-Carlo draws for each scored answer.
        seed: Seed of masks and of sampling; an item's random numbers depend on it, on the task
            and on the item alone.
        batch_size: Rows in a batch; None is as many as fit.
        progress: Called with (requests done, requests in all).

    Raises:
        CheckpointError: If the model has no tokenizer.
    """

    def __init__(
        self,
        model: DiffusionModel,
        decoding: DecodingSpec,
        *,
        draws: int,
        estimator: str = "llada",
        chat_template: bool = False,
        seed: int = 0,
        batch_size: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if model.tokenizer is None:
            raise CheckpointError(f"model {model.name!r} has no tokenizer: tasks are text")
        self.model, self.decoding, self.draws = model, decoding, draws
        self.estimator, self.chat_template = estimator, chat_template
        self.work: dict[tuple[str, int], Work] = {}
        self.seed, self.batch_size, self.progress = seed, batch_size, progress

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs in nats.

        Whether greedy decoding would give the continuation is not computed and always False:
        it takes as many model calls as there are tokens, for a value no task here reports.
        """
        pairs = [self.encode_pair(*request.args[:2]) for request in requests]
        values = log_likelihood(
            self.model,
            pairs,
            draws=self.draws,
            seed=self.seed,
            items=[f"{request.task_name}|{request.doc_id}" for request in requests],
            batch_size=self.batch_size,
            progress=self.progress,
        )
        return [(value, False) for value in values]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer behind each context, up to end-of-text or the first stop string."""
        prompts = [self.encode(request.args[0]) for request in requests]
        answers = generate(
            self.model,
            prompts,
            gen_length=self.decoding.gen_length,
            steps=self.decoding.steps,
            block_length=self.decoding.block_length,
            temperature=self.decoding.temperature,
            algorithm=self.decoding.algorithm,
            seeds=[self._item_seed(request) for request in requests],
            batch_size=self.batch_size,
            progress=self.progress,
        )
        return [
            self.decode(answer, stop_strings(request.args[1]))
            for answer, request in zip(answers, requests, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Refuse: a masked diffusion model has no left-to-right likelihood of a running text.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"task {requests[0].task_name!r} asks for perplexity of running text, which masked"
            " diffusion models do not give: choose a task with choices or generation"
        )

    def encode(self, text: str) -> list[int]:
        """Turn text into token ids, with whatever the model's tokenizer adds."""
        ids: list[int] = self.model.tokenizer(text)["input_ids"]
        return ids

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Encode both as one text; spaces at the context's end go to the continuation.

        Tokenizers join a space to the word behind it: scored apart, neither would be what the
        model has seen in training. Where a token would reach across the border, as `: ` may, both
        are encoded apart, as they are when the model writes behind the context itself: cutting the
        whole would score something else, and perhaps nothing at all.
        """
        kept = context.rstrip()
        moved = context[len(kept) :] + continuation
        whole = self.encode(kept + moved)
        first = self.encode(kept) if kept else []
        if whole[: len(first)] == first:
            return first, whole[len(first) :]
        return first, self.model.tokenizer(moved, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int], stops: Sequence[str]) -> str:
        """Turn generated ids into text, cut at end-of-text and at the first stop string.

        Stop strings may be special tokens; those that are left are dropped afterwards.
        """
        tokenizer, ends = self.model.tokenizer, self.model.special.end_ids
        length = next((place for place, one in enumerate(ids) if one in ends), len(ids))
        text: str = tokenizer.decode(list(ids[:length]), clean_up_tokenization_spaces=False)
        text = text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
        for token in self._special_tokens():
            text = text.replace(token, "")
        return text

    def _special_tokens(self) -> list[str]:
        tokenizer = self.model.tokenizer
        mask = tokenizer.convert_ids_to_tokens(self.model.special.mask_id)
        return [*tokenizer.all_special_tokens, *([mask] if isinstance(mask, str) else [])]

    def _item_seed(self, request: Instance) -> int:
        text = f"{self.seed}|{request.task_name}|{request.doc_id}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")


def stop_strings(options: dict[str, Any]) -> list[str]:
    """Read the stop strings from a task's generation options; empty ones stop nothing."""
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]
