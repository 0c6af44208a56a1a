"""What the exact savings in evaluation save: the plain paths beside them, with equal results.

Every case runs twice in one process, in float32 on a CPU. The plain paths do what the authors'
code does: all denoising steps of the whole window, `draws` rows for each choice, logits of every
position. Answers must be the same text, log-likelihoods equal to 1e-5 of themselves; if not, or
if a goal is missed, the program ends with 1.

    python benchmarks/evaluation.py            # minutes
    python benchmarks/evaluation.py --check    # a few items of each case
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data" / "tasks"
TOLERANCE = 1e-5
MODELS = ("llada-tiny", "dream-tiny")
GOALS = {"generated": 2.0, "scored": 5.0}
"""Least ratio of token-forwards (generated) and of rows (scored), where a case has a goal.

Answers that Dream's timeline writes have none: it writes the window's end first, so an answer is
complete only when nearly all of its window is."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task in one setting.

    Attributes:
        task: Its name.
        items: How many of its items.
        draws: Rows for each choice in the reference; 0 if answers are generated.
        window: Tokens to generate, in as many steps; 0 if answers are scored.
        block: Tokens in a block; the timeline sampler has none.
        has_goal: Whether the goal is set for this case: choices of few tokens, windows longer than
            the answers, as the study's are.
    """

    task: str
    items: int
    draws: int = 0
    window: int = 0
    block: int = 32
    has_goal: bool = True

    @property
    def kind(self) -> str:
        """`generated` or `scored`."""
        return "generated" if self.window else "scored"

    @property
    def setting(self) -> str:
        """The setting in words."""
        return f"window {self.window}" if self.window else f"{self.draws} draws"


CASES = (
    Case(task="tiny_facts", items=8, draws=128),
    Case(task="mmlu_abstract_algebra", items=2, draws=128),
    Case(task="arc_easy", items=2, draws=128, has_goal=False),
    Case(task="tiny_math", items=8, window=32, has_goal=False),
    Case(task="tiny_math", items=8, window=64),
    Case(task="tiny_math", items=8, window=128),
    Case(task="tiny_code", items=8, window=32, has_goal=False),
    Case(task="tiny_code", items=8, window=64),
    Case(task="tiny_code", items=8, window=128),
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one path took.

    Attributes:
        rows: Sequences that went through the model.
        tokens: Their tokens, padding included.
        full_tokens: The same, where a token whose last block and head are skipped counts for its
            share of the linears' multiplications.
        seconds: Of the processor's time, which other work on the machine does not lengthen.
    """

    rows: int
    tokens: int
    full_tokens: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """Both paths of one case.

    Attributes:
        model: The model.
        case: What was run.
        plain: Cost of the reference.
        saving: Cost of what a sweep runs.
        distinct_rows: Scored answers: rows once equal masks are joined, before choices share.
        is_equal: Whether both gave the same results.
        goal: Least `ratio`; None if there is none.
    """

    model: str
    case: Case
    plain: Cost
    saving: Cost
    distinct_rows: int
    is_equal: bool
    goal: float | None

    @property
    def ratio(self) -> float:
        """How many times fewer token-forwards (generated) or rows (scored)."""
        plain, saving = self.plain, self.saving
        return plain.tokens / saving.tokens if self.case.window else plain.rows / saving.rows

    @property
    def holds(self) -> bool:
        """Whether results are equal and the goal, if there is one, is reached."""
        return self.is_equal and (self.goal is None or self.ratio >= self.goal)


def measure(model: Any, case: Case) -> Result:
    """Run one case by both paths."""
    requests = _requests(case)
    found, costs = [], []
    for plain in (True, False):
        lm = _lm(model, case, plain=plain)
        before, started = model.work, time.process_time()
        answered = lm.generate_until if case.window else lm.loglikelihood
        found.append(answered(requests))
        costs.append(_cost(model, model.work - before, time.process_time() - started))
    return Result(
        model=model.name,
        case=case,
        plain=costs[0],
        saving=costs[1],
        distinct_rows=0 if case.window else _distinct_rows(lm, requests, case),
        is_equal=_are_equal(*found),
        goal=_goal(model, case),
    )


def _goal(model: Any, case: Case) -> float | None:
    has_blocks = model.family.sampler == "blockwise"
    return GOALS[case.kind] if case.has_goal and (has_blocks or not case.window) else None


def _requests(case: Case) -> list[Any]:
    from dllm_sweep.evaluation.tasks import load_tasks
    from dllm_sweep.spec import TaskSpec

    folder = None if case.task.startswith("tiny_") else str(DATA)
    (task,) = load_tasks(TaskSpec(name=case.task, shots=0, data=folder))["tasks"].values()
    task.build_all_requests(limit=case.items)
    requests: list[Any] = task.instances
    return requests


def _lm(model: Any, case: Case, *, plain: bool) -> Any:
    from dllm_sweep.evaluation.lm import DiffusionLM
    from dllm_sweep.spec import DecodingSpec

    window = case.window or 32
    is_dream = model.family.sampler == "timeline"
    decoding = DecodingSpec(
        gen_length=window,
        steps=window,
        block_length=window if is_dream else case.block,
        sampler=model.family.sampler,
        algorithm="entropy" if is_dream else "low_confidence",
    )
    estimator = model.family.estimator
    return DiffusionLM(model, decoding, draws=case.draws or 1, estimator=estimator, plain=plain)


def _cost(model: Any, work: Any, seconds: float) -> Cost:
    """Weigh what was computed by the linears' multiplications; attention's are left out."""
    sizes = {
        name: one.weight.numel()
        for name, one in model.blocks[-1].named_modules()
        if _is_linear(one)
    }
    block = sum(sizes.values())
    always = sum(size for name, size in sizes.items() if name.endswith(("k_proj", "v_proj")))
    head = model.host.get_output_embeddings().weight.numel()
    unread = (len(model.blocks) - 1) * block + always
    whole = len(model.blocks) * block + head
    return Cost(
        rows=work.rows,
        tokens=work.tokens,
        full_tokens=(work.tokens * unread + work.head_tokens * (whole - unread)) / whole,
        seconds=seconds,
    )


def _is_linear(module: Any) -> bool:
    from torch import nn

    return isinstance(module, nn.Linear)


def _distinct_rows(lm: Any, requests: list[Any], case: Case) -> int:
    from dllm_sweep.decoding.masks import answer_masks

    estimator = lm.model.family.estimator
    return sum(
        len(
            answer_masks(
                len(lm.text.encode_pair(*request.args)[1]),
                draws=case.draws,
                seed=0,
                item=f"{request.task_name}|{request.doc_id}",
                estimator=estimator,
            )
        )
        for request in requests
    )


def _are_equal(plain: list[Any], saving: list[Any]) -> bool:
    if plain and isinstance(plain[0], str):
        return plain == saving
    return all(
        math.isclose(one, other, rel_tol=TOLERANCE)
        for (one, _), (other, _) in zip(plain, saving, strict=True)
    )


HEADER = (
    "| model | task | setting | rows | token-forwards | weighed | CPU seconds | fewer | equal |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def _line(result: Result) -> str:
    plain, saving, case = result.plain, result.saving, result.case
    between = f" -> {result.distinct_rows:,}" if result.distinct_rows else ""
    goal = "" if result.goal is None else f" (goal {result.goal:g})"
    return (
        f"| {result.model} | {case.task} | {case.setting}"
        f" | {plain.rows:,}{between} -> {saving.rows:,}"
        f" | {plain.tokens:,} -> {saving.tokens:,}"
        f" | {plain.full_tokens:,.0f} -> {saving.full_tokens:,.0f}"
        f" | {plain.seconds:.1f} -> {saving.seconds:.1f}"
        f" | {result.ratio:.1f}{goal} | {'yes' if result.is_equal else 'NO'} |"
    )


def _results(check: bool) -> Iterator[Result]:
    from dllm_sweep.models import load_model

    for name in MODELS:
        model = load_model(name, device="cpu", dtype="float32")
        for case in CASES:
            if check and case.window > 64:
                continue
            smaller = asdict(case) | {"items": 2} if check else asdict(case)
            yield measure(model, Case(**smaller))


@click.command()
@click.option("--check", is_flag=True, help="Two items of each case: results, not ratios to cite.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), help="Write the numbers here, too."
)
def main(check: bool, path: Path | None) -> None:
    """Run every case by both paths, and print what each took; exits with 1 if one is wrong."""
    import torch

    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{HEADER}")
    results = []
    for result in _results(check):
        results.append(result)
        click.echo(_line(result))
    if path is not None:
        rows = [asdict(one) | {"ratio": one.ratio, "holds": one.holds} for one in results]
        path.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(0 if all(one.holds for one in results) else 1)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]
    main()
