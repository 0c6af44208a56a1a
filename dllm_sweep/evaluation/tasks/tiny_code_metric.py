"""How tiny_code is scored: a description with the model's body must pass the hidden tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def programs(answers: Sequence[Sequence[str]], items: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Put each answer behind its item's prompt, which ends with the `def` line."""
    return [
        [item["prompt"] + body for body in bodies]
        for bodies, item in zip(answers, items, strict=True)
    ]


def pass_at_1(references: Sequence[str], predictions: Sequence[str]) -> float:
    """Share of programs that pass their tests in the sandbox."""
    from dllm_sweep.evaluation.sandbox import run_tests

    passed = [run_tests(*pair) for pair in zip(predictions, references, strict=True)]
    return sum(passed) / len(passed)
