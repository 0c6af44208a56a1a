"""What an evaluation gives: scores, and one record for each item. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass

from dllm_sweep.records import Metric


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What became of one item of a task.

    Attributes:
        task: The task; for a group, its member.
        doc_id: The item's number in the task's data, from 0.
        prompt: What the model was given; with several choices, before the first.
        prompt_sha256: Of `prompt`.
        requests_sha256: Of all that was asked of the model: prompts, choices, stop strings.
        target: The right answer as the task states it.
        output: The text that the model wrote, before the task's filters; empty for choices.
        repeats: Further texts, for tasks that ask several times.
        answer: What the primary metric's filter made of the text, or the likeliest choice.
        log_likelihoods: Of each choice in nats; empty for generation.
        score: The primary metric's value for this item; None if it is no number.
        scores: All metrics that are numbers, as pairs of name and value.
        steps: Denoising steps; 0 for choices.
        forwards: Rows that went through the model for this item.
        token_forwards: Positions that went through the model's blocks for this item.
        truncated: Tokens of the context that did not fit and were cut off on the left.
    """

    task: str
    doc_id: int
    prompt: str
    prompt_sha256: str = ""
    requests_sha256: str = ""
    target: str
    output: str = ""
    repeats: tuple[str, ...] = ()
    answer: str
    log_likelihoods: tuple[float, ...]
    score: float | None
    scores: tuple[tuple[str, float], ...] = ()
    steps: int = 0
    forwards: int = 0
    token_forwards: int = 0
    truncated: int = 0


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """All that the evaluation of one task gave.

    Attributes:
        metrics: Its metrics, the primary one first.
        samples: One for each item, in the order of the data.
    """

    metrics: tuple[Metric, ...]
    samples: tuple[Sample, ...]
