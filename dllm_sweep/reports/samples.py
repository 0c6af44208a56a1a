"""A trial's answers beside those of full precision, item by item."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.reports.listing import Listing, as_csv, plain

LOST, GAINED, OTHER, OTHER_PROMPT = "lost", "gained", "other answer", "other prompt"
_SHOWN = 40
"""Characters of an answer in a table."""
_COMPARED = ("answer", "score", "output", "log_likelihoods", "forwards")
"""Fields that the CSV has of both trials."""
_ONCE = ("steps", "token_forwards", "truncated", "prompt_sha256", "prompt")


@dataclass(frozen=True)
class Pair:
    """One item as two trials answered it.

    Attributes:
        own: The trial's record.
        full: Full precision's record of the same item; None if there is none.
    """

    own: Sample
    full: Sample | None

    @property
    def change(self) -> str:
        """What became of the item: `lost` or `gained` by the score, `other answer` with the same
        score, `other prompt` where the two are no answers to the same, else empty."""
        own, full = self.own, self.full
        if full is None:
            return ""
        if own.requests_sha256 != full.requests_sha256:
            return OTHER_PROMPT
        if _number(own.score) != _number(full.score):
            return LOST if _number(own.score) < _number(full.score) else GAINED
        same = (own.answer, own.output) == (full.answer, full.output)
        return "" if same else OTHER

    @property
    def full_score(self) -> float | None:
        """Full precision's score."""
        return None if self.full is None else self.full.score

    @property
    def is_wrong(self) -> bool:
        """Whether the trial's own answer has less than the whole score."""
        return self.own.score is None or self.own.score < 1


def pair_up(own: Sequence[Sample], full: Sequence[Sample]) -> tuple[Pair, ...]:
    """Put the answers of two trials to the same items side by side."""
    known = {(one.task, one.doc_id): one for one in full}
    return tuple(Pair(one, known.get((one.task, one.doc_id))) for one in own)


def render_samples(pairs: Sequence[Pair], form: str, task: str) -> str:
    """Write pairs as `table`, `json` or `csv`; the last two have the texts whole.

    Args:
        pairs: The items.
        form: How they are written.
        task: The task that was asked for; the table names the tasks of others, a group's members.
    """
    if form == "json":
        return json.dumps([_record(pair) for pair in pairs], indent=1, ensure_ascii=False) + "\n"
    if form == "csv":
        return as_csv(_flat(pairs))
    return plain(_short(pairs, task)) if pairs else "no such items\n"


def render_one(pair: Pair) -> str:
    """Write one item in full: the prompt, then what each of the two made of it."""
    own = pair.own
    head = f"{own.task} {own.doc_id}{f', {pair.change}' if pair.change else ''}"
    parts = [f"{head}\n\nprompt (SHA-256 {own.prompt_sha256[:12]})\n{own.prompt}"]
    parts.append(f"target\n{own.target}")
    if pair.full is not None:
        parts.append(f"full precision{_facts(pair.full)}")
    parts.append(f"this trial{_facts(own)}")
    return "\n\n".join(parts) + "\n"


def summary(pairs: Sequence[Pair]) -> str:
    """Say how many items flipped, and the paired difference of the mean scores."""
    both = [pair for pair in pairs if pair.full is not None]
    if not both:
        return f"{len(pairs)} items; no full-precision answers to compare with"
    counts = Counter(pair.change for pair in both)
    told = ", ".join(f"{counts[name]} {name}" for name in (LOST, GAINED, OTHER))
    if counts[OTHER_PROMPT]:
        told += f", {counts[OTHER_PROMPT]} {OTHER_PROMPT}"
    steps = [_number(pair.own.score) - _number(pair.full.score) for pair in both if pair.full]
    mean = math.fsum(steps) / len(steps)
    error = ""
    if len(steps) > 1:
        variance = math.fsum((step - mean) ** 2 for step in steps) / (len(steps) - 1)
        error = f" ± {math.sqrt(variance / len(steps)):.4f}"
    return f"{len(both)} items: {told}; difference of the means {mean:+.4f}{error} (paired)"


def _number(score: float | None) -> float:
    return 0.0 if score is None else score


def _facts(sample: Sample) -> str:
    score = "none" if sample.score is None else f"{sample.score:g}"
    facts = [f"score {score}"]
    facts += [f"{name} {value:g}" for name, value in sample.scores if len(sample.scores) > 1]
    facts += [
        f"{count} {name}"
        for name, count in (
            ("steps", sample.steps),
            ("forwards", sample.forwards),
            ("token-forwards", sample.token_forwards),
        )
        if count
    ]
    lines = [f": {', '.join(facts)}", f"answer: {sample.answer}"]
    if sample.log_likelihoods:
        nats = ", ".join(f"{value:.4f}" for value in sample.log_likelihoods)
        lines.append(f"log-likelihoods in nats: {nats}")
    elif sample.output != sample.answer:
        lines.append(f"as written:\n{sample.output or '(nothing)'}")
    return "\n".join(lines)


def _short(pairs: Sequence[Pair], asked: str) -> Listing:
    compared = any(pair.full is not None for pair in pairs)
    several = any(pair.own.task != asked for pair in pairs)
    rows = []
    for pair in pairs:
        own, full = pair.own, pair.full
        theirs = () if not compared else (_cut(full.answer if full else ""), pair.full_score)
        row = (own.doc_id, _cut(own.target), *theirs, _cut(own.answer), own.score)
        rows.append((*((own.task,) if several else ()), *row, *((pair.change,) * compared)))
    columns = ("item", "target", *(("full precision", "score") * compared), "this trial", "score")
    task = ("task",) if several else ()
    return Listing((*task, *columns, *(("change",) * compared)), tuple(rows))


def _flat(pairs: Sequence[Pair]) -> Listing:
    columns = (
        *("task", "doc_id", "change", "target"),
        *(name for field in _COMPARED for name in (field, f"full_precision_{field}")),
        *_ONCE,
    )
    rows = []
    for pair in pairs:
        own, full = pair.own, pair.full
        both = [value for field in _COMPARED for value in (_cell(own, field), _cell(full, field))]
        once = [getattr(own, field) for field in _ONCE]
        rows.append((own.task, own.doc_id, pair.change, own.target, *both, *once))
    return Listing(columns, tuple(rows))


def _cell(sample: Sample | None, field: str) -> object:
    value = None if sample is None else getattr(sample, field)
    return json.dumps(value) if isinstance(value, tuple) else value


def _record(pair: Pair) -> dict[str, object]:
    own: dict[str, Any] = dataclasses.asdict(pair.own)
    full = pair.full
    shared = {name: own.pop(name) for name in ("task", "doc_id", "target", "prompt")}
    theirs: dict[str, Any] | None = None if full is None else dataclasses.asdict(full)
    if theirs is not None:
        theirs = _numbers({name: value for name, value in theirs.items() if name not in shared})
    return {**shared, "change": pair.change, "trial": _numbers(own), "full_precision": theirs}


def _numbers(record: dict[str, Any]) -> dict[str, Any]:
    """The same with metrics by name; JSON has no word for what is no finite number, so text."""
    scores, values = record["scores"], record["log_likelihoods"]
    named = {name: _finite(value) for name, value in scores}
    listed = [_finite(value) for value in values]
    return {**record, "score": _finite(record["score"]), "scores": named, "log_likelihoods": listed}


def _finite(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
