"""Stored answers in place of a model: the same requests, filters and metrics, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from dllm_sweep.errors import InputError
from dllm_sweep.evaluation.logged import requests_digest
from dllm_sweep.evaluation.sample import Sample, TaskResult
from dllm_sweep.evaluation.scoring import score_task
from dllm_sweep.evaluation.work import Work
from dllm_sweep.spec import TaskSpec


class Replay(LM):
    """Answers lm-eval's requests with what was answered before.

    Args:
        samples: The answers to all items of a task.
        check: Whether to refuse answers to other requests than those that are made now.
    """

    def __init__(self, samples: Sequence[Sample], *, check: bool = True) -> None:
        super().__init__()
        self._known = {(sample.task, sample.doc_id): sample for sample in samples}
        self._check = check
        self.work = {key: _work(sample) for key, sample in self._known.items()}

    @property
    def tokenizer_name(self) -> str:
        """There is none."""
        return ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Join the turns: the template is the model's, and nobody reads this prompt."""
        return "\n".join(turn["content"] for turn in chat_history)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Give the stored log-likelihoods in nats.

        Raises:
            InputError: If an item was not answered, or asked otherwise.
        """
        self._refuse_others(requests)
        return [(self._likelihood(request), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Give the stored values for running texts, in nats.

        Raises:
            InputError: If an item was not answered, or asked otherwise.
        """
        self._refuse_others(requests)
        return [self._likelihood(request) for request in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Give the stored texts, one after the other where a task asks several times.

        Raises:
            InputError: If an item was not answered, or asked otherwise.
        """
        self._refuse_others(requests)
        given: dict[tuple[Any, Any], int] = {}
        texts = []
        for request in requests:
            key = request.task_name, request.doc_id
            sample = self._sample(request)
            written = (sample.output, *sample.repeats)
            number = given[key] = given.get(key, -1) + 1
            if number >= len(written):
                raise _missing(request)
            texts.append(written[number])
        return texts

    def _likelihood(self, request: Instance) -> float:
        values = self._sample(request).log_likelihoods
        if request.idx >= len(values):
            raise _missing(request)
        value: float = values[request.idx]
        return value

    def _sample(self, request: Instance) -> Sample:
        sample = self._known.get((request.task_name or "", request.doc_id or 0))
        if sample is None:
            raise _missing(request)
        return sample

    def _refuse_others(self, requests: Sequence[Instance]) -> None:
        if not self._check:
            return
        asked: dict[tuple[Any, Any], dict[int, Instance]] = {}
        for request in requests:
            asked.setdefault((request.task_name, request.doc_id), {})[request.idx] = request
        for by_place in asked.values():
            ordered = [by_place[place] for place in sorted(by_place)]
            stored = self._sample(ordered[0]).requests_sha256
            if stored not in ("", requests_digest([one.args for one in ordered])):
                raise InputError(
                    f"item {ordered[0].doc_id} of {ordered[0].task_name} is asked otherwise now:"
                    " the task's data, prompts or choices have changed; evaluate it anew"
                )


def rescore_task(
    task: TaskSpec, samples: Sequence[Sample], *, chat_template: bool = False
) -> TaskResult:
    """Score stored answers by the task as it is now: its filters, metrics and aggregation.

    Args:
        task: The task as it was evaluated, with its shots and limit.
        samples: All of its items' records.
        chat_template: Whether prompts were wrapped in a chat template; what was asked cannot be
            compared then, since the template is the model's.

    Raises:
        InputError: If the task cannot be loaded, or asks what was not answered.
    """
    return score_task(Replay(samples, check=not chat_template), task, chat_template=chat_template)


def _work(sample: Sample) -> Work:
    return Work(
        steps=sample.steps,
        forwards=sample.forwards,
        token_forwards=sample.token_forwards,
        truncated=sample.truncated,
    )


def _missing(request: Instance) -> InputError:
    return InputError(
        f"item {request.doc_id} of {request.task_name} has no stored answer: the task asks more"
        " than it did; evaluate it anew"
    )
