"""From what lm-eval logged of a task's items to one record for each item."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.evaluation.work import Work

Works = Mapping[tuple[str, int], Work]
"""What each item took, by task and number of the item."""


def metric_name(key: str, keys: Sequence[str]) -> str:
    """Drop the filter from `exact_match,strict-match` where the metric has only that one."""
    metric = key.partition(",")[0]
    same = [other for other in keys if other.partition(",")[0] == metric]
    return metric if len(same) == 1 else key


def samples_of(
    logged: Sequence[Mapping[str, Any]], task: str, primary: str, work: Works
) -> Iterator[Sample]:
    """Give one record for each item, as the primary metric's filter sees it.

    Args:
        logged: What lm-eval logged: one entry for each item and filter.
        task: The task; for a group, its member.
        primary: Name of the primary metric, with its filter if it has several.
        work: What each item took.
    """
    metric, _, filtered = primary.partition(",")
    wanted = filtered or next(one["filter"] for one in logged if metric in one["metrics"])
    scores = _scores(logged)
    for one in logged:
        if one["filter"] == wanted:
            number = int(one["doc_id"])
            yield _sample(one, task, one.get(metric), scores[number], work.get((task, number)))


def requests_digest(arguments: Sequence[Sequence[Any]]) -> str:
    """SHA-256 over all that is asked about one item, in the order in which it is asked."""
    text = json.dumps([list(one) for one in arguments], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _scores(logged: Sequence[Mapping[str, Any]]) -> dict[int, tuple[tuple[str, float], ...]]:
    """All scores of each item that are numbers, named as the task's metrics are."""
    keys = sorted({f"{metric},{one['filter']}" for one in logged for metric in one["metrics"]})
    found: dict[int, list[tuple[str, float]]] = {}
    for one in logged:
        scores = found.setdefault(int(one["doc_id"]), [])
        for metric in one["metrics"]:
            if isinstance(one[metric], Real):
                name = metric_name(f"{metric},{one['filter']}", keys)
                scores.append((name, float(one[metric])))
    return {number: tuple(sorted(scores)) for number, scores in found.items()}


def _sample(
    one: Mapping[str, Any],
    task: str,
    score: object,
    scores: tuple[tuple[str, float], ...],
    work: Work | None,
) -> Sample:
    work = work or Work()
    texts = [text for text in one["resps"][0] if isinstance(text, str)]
    likelihoods = () if texts else _likelihoods(one["filtered_resps"])
    prompt = str(one["arguments"][0][0])
    return Sample(
        task=task,
        doc_id=int(one["doc_id"]),
        prompt=prompt,
        prompt_sha256=hashlib.sha256(prompt.encode()).hexdigest(),
        requests_sha256=requests_digest(one["arguments"]),
        target=str(one["target"]),
        output=texts[0] if texts else "",
        repeats=tuple(texts[1:]),
        answer=_text(one["filtered_resps"][0]) if texts else _likeliest(one, likelihoods),
        log_likelihoods=likelihoods,
        score=float(score) if isinstance(score, Real) else None,
        scores=scores,
        steps=work.steps,
        forwards=work.forwards,
        token_forwards=work.token_forwards,
        truncated=work.truncated,
    )


def _likelihoods(answers: Sequence[Any]) -> tuple[float, ...]:
    """Of each choice; of a running text, which lm-eval asks alone, its only one."""
    return tuple(float(one[0] if isinstance(one, tuple) else one) for one in answers)


def _likeliest(one: Mapping[str, Any], likelihoods: tuple[float, ...]) -> str:
    arguments = one["arguments"]
    if len(arguments[0]) < 2:
        return ""
    ordered = [-math.inf if math.isnan(value) else value for value in likelihoods]
    best = ordered.index(max(ordered))
    continuations = {str(pair[1]) for pair in arguments}
    if len(continuations) > 1 or len(arguments) == 1:
        return str(arguments[best][1])
    # The choice stands in the context, as in WinoGrande: show where the contexts differ.
    contexts = [str(pair[0]) for pair in arguments]
    first, last = min(contexts), max(contexts)
    same = zip(first, last, strict=False)
    border = next((at for at, (a, b) in enumerate(same) if a != b), len(first))
    return contexts[best][first.rfind(" ", 0, border) + 1 :]


def _text(answer: object) -> str:
    return answer if isinstance(answer, str) else json.dumps(answer, default=str)
