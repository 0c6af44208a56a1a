"""Accuracy of a checkpoint by stratum: `python -m dllm_sweep.tiny.measure FOLDER`.

The items come from the test split. The shipped tasks were composed from these figures.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer

from dllm_sweep.catalog import USUAL_ALGORITHM
from dllm_sweep.tiny import arithmetic, facts, programs
from dllm_sweep.tiny.split import draw_distinct
from dllm_sweep.tiny.tokenizer import END, load_tokenizer

CHUNK = 512


def main() -> None:
    """Measure every stratum and print one line of JSON for each setting."""
    options = _arguments()
    from dllm_sweep.models import load_model

    model = load_model(str(options.folder), device=options.device, dtype="float32")
    tokenizer = load_tokenizer(options.folder)
    for steps in options.steps:
        scores = generation_scores(model, tokenizer, options.items, steps)
        print(json.dumps({"steps": steps, **scores}), flush=True)
    print(json.dumps(fact_scores(model, tokenizer, options.items)), flush=True)


def generation_scores(model: Any, tokenizer: Tokenizer, items: int, steps: int) -> dict[str, float]:
    """Share of right answers in each stratum of arithmetic and programs."""
    scores = {}
    for stratum in arithmetic.STRATA:
        problems = sample_problems(stratum, items, seed=1)
        said = continuations(model, tokenizer, [item.prompt for item in problems], steps)
        right = [answer_in(text) == item.answer for text, item in zip(said, problems, strict=True)]
        scores[stratum] = sum(right) / items
    for stratum in programs.STRATA:
        wanted = sample_programs(stratum, items, seed=1)
        said = continuations(model, tokenizer, [item.prompt for item in wanted], steps)
        with ThreadPoolExecutor() as pool:
            scores[stratum] = sum(pool.map(passes, wanted, said)) / items
    return scores


def fact_scores(model: Any, tokenizer: Tokenizer, items: int) -> dict[str, float]:
    """Share of questions in each stratum whose right value is the most likely of four."""
    scores = {}
    for stratum in facts.STRATA:
        asked = sample_questions(stratum, items, seed=1)
        scores[stratum] = sum(chosen_rightly(model, tokenizer, asked)) / items
    return scores


def chosen_rightly(model: Any, tokenizer: Tokenizer, asked: Sequence[facts.Question]) -> list[bool]:
    """For each question, whether the right value is the most likely."""
    from dllm_sweep.decoding import log_likelihood

    pairs = [
        (tokenizer.encode(item.prompt).ids, tokenizer.encode(f" {choice}").ids)
        for item in asked
        for choice in item.choices
    ]
    likely = log_likelihood(model, pairs, draws=32, seed=0)
    rows = [likely[start : start + facts.CHOICES] for start in range(0, len(likely), facts.CHOICES)]
    return [row.index(max(row)) == item.answer for row, item in zip(rows, asked, strict=True)]


def continuations(
    model: Any, tokenizer: Tokenizer, prompts: Sequence[str], steps: int
) -> list[str]:
    """What the model says behind each prompt, up to end-of-text, by its family's usual sampler."""
    from dllm_sweep.decoding import generate

    usual = USUAL_ALGORITHM[model.family.sampler]
    ids = [tokenizer.encode(prompt).ids for prompt in prompts]
    said: list[list[int]] = []
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        said += generate(model, part, gen_length=32, steps=steps, algorithm=usual)
    return [tokenizer.decode(tokens[: _end(tokens)]) for tokens in said]


def answer_in(text: str) -> int | None:
    """The number behind `####`, or None."""
    found = re.search(r"#### (\d+)", text)
    return int(found[1]) if found else None


def passes(wanted: programs.Program, body: str) -> bool:
    """Whether a body passes the hidden tests; the reference itself needs no run."""
    from dllm_sweep.evaluation.sandbox import run_tests

    if body == wanted.response:
        return True
    return run_tests(wanted.prompt + body, programs.hidden_tests(wanted))


def sample_problems(stratum: str, count: int, seed: int) -> list[arithmetic.Problem]:
    """Different problems of the test split."""
    make = partial(arithmetic.problem, stratum=stratum)
    return draw_distinct(make, Random(f"{stratum} {seed}"), count, test=True)


def sample_programs(stratum: str, count: int, seed: int) -> list[programs.Program]:
    """Different programs of the test split."""
    make = partial(programs.program, stratum=stratum)
    return draw_distinct(make, Random(f"{stratum} {seed}"), count, test=True)


def sample_questions(stratum: str, count: int, seed: int) -> list[facts.Question]:
    """Different questions of the test split."""
    make = partial(facts.question_of, stratum=stratum)
    return draw_distinct(make, Random(f"{stratum} {seed}"), count, test=True)


def _end(tokens: Sequence[int]) -> int:
    return tokens.index(END) if END in tokens else len(tokens)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=500, help="items of each stratum")
    parser.add_argument("--steps", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    main()
