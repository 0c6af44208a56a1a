"""How HumanEval and MBPP are scored: an answer must pass its item's tests in the sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Answers = Sequence[Sequence[str]]
Items = Sequence[dict[str, Any]]

_EXAMPLES = Path(__file__).with_name("mbpp_examples.jsonl")
_FENCE = "```"


def behind_prompt(answers: Answers, items: Items) -> list[list[str]]:
    """Put each answer behind its item's prompt, which ends inside of the function."""
    return [
        [item["prompt"] + body for body in bodies]
        for bodies, item in zip(answers, items, strict=True)
    ]


def behind_prompt_up_to_fence(answers: Answers, items: Items) -> list[list[str]]:
    """The same with answers that end where the block of code is closed."""
    cut = [[body.partition(_FENCE)[0] for body in bodies] for bodies in answers]
    return behind_prompt(cut, items)


def pass_at_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of programs that pass their tests in the sandbox."""
    from dllm_sweep.evaluation.sandbox import run_tests

    passed = [run_tests(*pair) for pair in zip(predictions, references, strict=True)]
    return sum(passed) / len(passed)


def pass_at_k(references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """The same under the name that lm-eval gives it for HumanEval."""
    return {"pass@1": pass_at_1(references, predictions)}


def mbpp_examples() -> list[dict[str, Any]]:
    """The three examples of MBPP's prompt."""
    lines = _EXAMPLES.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) | {"is_fewshot": True} for line in lines if line]
