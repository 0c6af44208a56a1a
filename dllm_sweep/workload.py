"""How many tokens pass through a model in a unit of work: what its time is proportional to.

Generated text is counted to the end of its window. Decoding that stops when the answer is complete
takes less, but nobody knows beforehand how long the answers are.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from functools import lru_cache

from dllm_sweep import catalog
from dllm_sweep.spec import DecodingSpec, TaskSpec, TrialSpec, Unit

PROMPT_TOKENS = 128
"""Tokens of a prompt or of a question with one answer, when the task is not known."""
ANSWERS = 4
"""Answers to a likelihood item."""
CHOICE_TOKENS = 2
"""Tokens of a choice, when the task is not known; one row of all choices is what it costs."""
ITEMS = 1000
"""Items of a task without a limit."""
SOLVER_PASSES = 8
"""A method with calibration costs as much as this many forward passes over it."""
STUDY_PASSES = 6
"""Outlier statistics cost as much as this many forward passes over their text."""
ADAPTIVE_SHARE = 1 / 3
"""Steps that a threshold or a factor leaves of those asked for: Fast-dLLM (arXiv 2505.22618,
Table 2) reports 2.5 to 5.8 times fewer."""

GENERATION = "generate_until"
CHOICE = "multiple_choice"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a task is as planned.

    Attributes:
        kind: `generate_until` or `multiple_choice`.
        items: Items within the limit; of a group, of all members.
        prompt: Mean tokens of a prompt, examples included.
        choices: Answers to be scored for an item.
        answer: Mean tokens of a scored answer.
    """

    kind: str
    items: int
    prompt: float
    choices: int
    answer: float


def unit_tokens(trial: TrialSpec, unit: Unit, longest: int | None = None) -> float:
    """Tokens that pass through the model in a unit.

    Args:
        trial: The trial.
        unit: One of its units.
        longest: Tokens that the model reads at most: longer prompts are cut; None is any number.
    """
    if unit.kind == "quantize":
        text = trial.calibration
        if text is None:
            return 0
        return SOLVER_PASSES * text.samples * text.length + catalog.written_tokens(text)
    if unit.kind == "outliers":
        study = trial.protocol.outliers
        if study is None:
            return 0
        sequences = study.text.samples * len(study.mask_ratios)
        return STUDY_PASSES * sequences * study.text.length
    task = trial.protocol.task(unit.task)
    return task_tokens(task, trial.protocol.decoding_of(task), longest=longest)


def task_tokens(
    task: TaskSpec, decoding: DecodingSpec, *, longest: int | None = None, plain: bool = False
) -> float:
    """Tokens that pass through the model in a task.

    Args:
        task: The task.
        decoding: How text is generated.
        longest: Tokens that the model reads at most; None is any number.
        plain: Count every Monte-Carlo draw of every answer, as the authors' code computes them;
            else draws that look alike once, as this program does.
    """
    size = task_size(task)
    if size is None:
        return _unknown_tokens(task, decoding)
    limit = math.inf if longest is None else longest
    if size.kind == GENERATION:
        prompt = min(size.prompt, limit - decoding.gen_length)
        return size.items * generation_tokens(decoding, prompt)
    length = round(size.answer)
    rows = float(size.choices * task.draws)
    if not plain and length == 1 and task.estimator == "llada":
        rows = 1.0  # all answers are one mask behind the same prompt
    elif not plain:
        rows = size.choices * min(distinct_masks(task.draws, length, task.estimator), task.draws)
    return size.items * rows * min(size.prompt + size.answer, limit)


def generation_tokens(decoding: DecodingSpec, prompt: float) -> float:
    """Tokens that pass through the model for one generated answer, to the end of its window."""
    whole = prompt + decoding.gen_length
    adaptive = decoding.threshold is not None or decoding.factor is not None
    steps = decoding.steps * (ADAPTIVE_SHARE if adaptive else 1)
    if decoding.cache == "none":
        return steps * whole * (2 if decoding.cfg_scale else 1)
    blocks = decoding.gen_length / decoding.block_length
    # A prefix cache forwards the block and all behind it, half of the window on average.
    ahead = (decoding.gen_length + decoding.block_length) / 2
    inner = decoding.block_length if decoding.cache == "dual" else ahead
    return blocks * whole + max(steps - blocks, 0) * inner


@lru_cache
def distinct_masks(draws: int, length: int, estimator: str) -> float:
    """Expected number of different masks among so many draws over an answer of `length` tokens.

    A count of hidden tokens is drawn uniformly, from 1 (`llada`) or 0 (`dream`, whose empty masks
    cost nothing) to `length`, and then which tokens: one mask of k tokens has the probability
    1 / (counts C(length, k)).
    """
    counts = length + (estimator == "dream")
    expected = 0.0
    for hidden in range(1, length + 1):
        masks = math.comb(length, hidden)
        chance = 1 / (counts * masks)
        seen = 1.0 if chance == 1 else -math.expm1(draws * math.log1p(-chance))
        expected += masks * seen
    return expected


def items_of(task: TaskSpec) -> int:
    """How many items a task has within its limit, as far as is known."""
    size = task_size(task)
    return task.limit or ITEMS if size is None else size.items


@lru_cache(maxsize=4096)
def task_size(task: TaskSpec) -> Size | None:
    """What is known of a task's size: of the study's, by a table; of others by their own files."""
    from dllm_sweep.evaluation.tasks.facts import FACTS

    facts = FACTS.get(task.name)
    if facts is None:
        return _size_by_file(task)
    return Size(
        kind=facts.output_type,
        items=facts.items_within(task.limit) if task.data is None else _local_items(task),
        prompt=facts.tokens_with(task.shots or 0),
        choices=facts.choices,
        answer=facts.answer_tokens,
    )


def _local_items(task: TaskSpec) -> int:
    """Items within the limit in a task's local data, which may be a part of the published sets."""
    from dllm_sweep.evaluation.tasks.data import data_files, read_rows

    files = data_files(replace(task, shots=0))
    return sum(min(len(read_rows(file)), task.limit or ITEMS**3) for file in files)


def _size_by_file(task: TaskSpec) -> Size | None:
    """What a task's file says that it does, and how many items its data has."""
    from dllm_sweep.evaluation.tasks import task_file

    path = task_file(task.name)
    text = "" if path is None else path.read_text(encoding="utf-8")
    kind = re.search(rf"^output_type: *({GENERATION}|{CHOICE})\b", text, re.MULTILINE)
    if path is None or kind is None:
        return None
    data = re.search(r"^ +test: *(\S+\.jsonl)", text, re.MULTILINE)
    rows = path.parent / data[1] if data else None
    items = len(rows.read_bytes().splitlines()) if rows and rows.is_file() else ITEMS
    return Size(
        kind=kind[1],
        items=min(task.limit or items, items),
        prompt=PROMPT_TOKENS,
        choices=1,
        answer=CHOICE_TOKENS,
    )


def _unknown_tokens(task: TaskSpec, decoding: DecodingSpec) -> float:
    """The dearer of generating and scoring."""
    scoring = PROMPT_TOKENS * ANSWERS * task.draws
    return (task.limit or ITEMS) * max(generation_tokens(decoding, PROMPT_TOKENS), scoring)
