"""The bridge between lm-eval's requests and a diffusion language model."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dllm_sweep.decoding.base import Generation
from dllm_sweep.decoding.bound import nll_bound
from dllm_sweep.decoding.likelihood import Estimation, score_pairs
from dllm_sweep.decoding.sampler import sample
from dllm_sweep.evaluation.text import TaskText, stop_strings
from dllm_sweep.evaluation.work import Work
from dllm_sweep.models.base import DiffusionModel
from dllm_sweep.spec import DecodingSpec

_Prompt = tuple[list[int], int]
"""Token ids and how many were cut off on the left."""


class DiffusionLM(LM):
    """Answers lm-eval's requests with a sampler and Monte-Carlo likelihoods.

    Args:
        model: The model, with a tokenizer.
        decoding: How text is generated; it takes the place of a task's own lengths and
            temperatures, so that all tasks of a sweep are decoded alike. Its `cfg_scale` holds
            for scored answers, too.
        draws: Monte-Carlo draws for each scored answer.
        estimator: Which Monte-Carlo likelihood, `llada` or `dream`.
        chat_template: Whether the prompts are conversations written out by the chat template.
        seed: Seed of masks and of sampling; an item's random numbers depend on it, on the task
            and on the item alone.
        batch_size: Rows in a batch; None is as many as fit.
        plain: Whether to take the reference paths of sampler and likelihood, which save nothing.
        progress: Called with (requests done, requests in all).

    Attributes:
        text: Turns the tasks' text into the model's tokens and back.
        work: What each item took so far, by task and number of the item.

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
        plain: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.decoding = model, decoding
        self.text = TaskText(model, chat=chat_template)
        self.work: defaultdict[tuple[str, int], Work] = defaultdict(Work)
        self._how = Estimation(
            draws=draws,
            seed=seed,
            estimator=estimator,
            cfg_scale=decoding.cfg_scale,
            plain=plain,
        )
        self._batch_size, self._plain, self._progress = batch_size, plain, progress

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells models with chat templates apart by."""
        return self.model.name

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation out; without a generation prompt its last turn is left open."""
        return self.text.conversation(chat_history, prefix=not add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs in nats.

        Whether greedy decoding would give the continuation is not computed and always False:
        it takes as many model calls as there are tokens, for a value no task here reports.
        """
        pairs = [self._pair(request) for request in requests]
        found = score_pairs(
            self.model,
            [(context, answer) for (context, _), answer in pairs],
            self._how,
            items=[_item(request) for request in requests],
            batch_size=self._batch_size,
            progress=self._progress,
        )
        for request, ((_, cut), _), one in zip(requests, pairs, found, strict=True):
            self.work[_place(request)] += Work(
                forwards=one.rows, token_forwards=one.token_forwards, truncated=cut
            )
        return [(one.value, False) for one in found]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer behind each context, up to end-of-text or the first stop string."""
        window = self.decoding.gen_length
        prompts = [
            self.text.fit(self.text.encode(request.args[0]), window, _item(request))
            for request in requests
        ]
        seeds = self._seeds(requests)
        alike: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            alike[tuple(stop_strings(request.args[1]))].append(number)
        answers: dict[int, str] = {}
        for stops, numbers in alike.items():
            written = self._write(
                [prompts[number][0] for number in numbers],
                [seeds[number] for number in numbers],
                stops,
                self._shifted(len(answers), len(requests)),
            )
            for number, one in zip(numbers, written, strict=True):
                self._record(requests[number], one, prompts[number])
                answers[number] = self.text.decode(one.tokens, stops)
        return [answers[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Bound the log-likelihood of running texts from below, in nats.

        A masked diffusion model has no left-to-right likelihood: what a task makes of these
        values bounds its perplexity from above.
        """
        bounds = nll_bound(
            self.model,
            [self.text.encode_bare(request.args[0]) for request in requests],
            draws=self._how.draws,
            seed=self._how.seed,
            items=[_item(request) for request in requests],
            batch_size=self._batch_size,
            plain=self._plain,
            progress=self._progress,
        )
        for request, one in zip(requests, bounds, strict=True):
            self.work[_place(request)] += Work(forwards=one.rows, token_forwards=one.token_forwards)
        return [-one.nats for one in bounds]

    def _pair(self, request: Instance) -> tuple[_Prompt, list[int]]:
        context, answer = self.text.encode_pair(*request.args[:2])
        if self._how.estimator == "dream":
            # Its authors score the answer in front of end-of-text, which is always visible.
            answer = [*answer, self.model.special.end_ids[0]]
        return self.text.fit(context, len(answer), _item(request)), answer

    def _write(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        stops: Sequence[str],
        progress: Callable[[int, int], None] | None,
    ) -> list[Generation]:
        return sample(
            self.model,
            prompts,
            self.decoding,
            seeds=seeds,
            batch_size=self._batch_size,
            stop=None if self._plain else self.text.stop_rule(stops),
            plain=self._plain,
            progress=progress,
        )

    def _record(self, request: Instance, one: Generation, prompt: _Prompt) -> None:
        self.work[_place(request)] += Work(
            steps=one.steps,
            forwards=one.forwards,
            token_forwards=one.token_forwards,
            truncated=prompt[1],
        )

    def _shifted(self, before: int, total: int) -> Callable[[int, int], None] | None:
        report = self._progress
        return None if report is None else lambda done, _: report(before + done, total)

    def _seeds(self, requests: Sequence[Instance]) -> list[int]:
        """Seeds of the items; each further sample of one item gets another."""
        seen: Counter[str] = Counter()
        seeds = []
        for request in requests:
            item = _item(request)
            repeat = f"|{seen[item]}" if seen[item] else ""
            seen[item] += 1
            digest = hashlib.sha256(f"{self._how.seed}|{item}{repeat}".encode()).digest()
            seeds.append(int.from_bytes(digest[:7], "little"))
        return seeds


def _item(request: Instance) -> str:
    return f"{request.task_name}|{request.doc_id}"


def _place(request: Instance) -> tuple[str, int]:
    return str(request.task_name), int(request.doc_id or 0)
