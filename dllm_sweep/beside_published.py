"""One's own scores beside published ones: differences with intervals, tasks and task groups."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dllm_sweep.errors import InputError, UnknownName
from dllm_sweep.published import Cell, binomial_error, cells, names
from dllm_sweep.spec import FULL_PRECISION, FULL_PRECISION_METHOD, QuantScheme
from dllm_sweep.task_groups import by_group, plain_name

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

_OF_TRIAL = ("sweep", "trial_key", "model", "method", "parameters", "scheme", "calibration", "seed")
_SCORES = f"""SELECT {", ".join(_OF_TRIAL)}, protocol_key, task, metric, value, stderr, n
FROM results WHERE is_primary AND value IS NOT NULL"""
_ORDER = " ORDER BY sweep, model, method, scheme, seed, trial_key, task"
_Z = 1.959963984540054
"""Quantile of the normal distribution for intervals of 95 %."""

Scores = Mapping[str, Any]
"""One own score: a row of the view `results`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One own score or mean beside the published one; all scores are in percent.

    Attributes:
        sweep: The sweep.
        trial_key: The trial's key.
        model: The trial's model.
        published_model: The model it is compared with.
        method: Quantization method.
        parameters: Its parameters as a JSON text.
        scheme: The trial's bit-widths.
        calibration: What its method saw; None if nothing.
        seed: The trial's seed.
        name: The task, or the group of tasks.
        tasks: What the values are means over: the same tasks on both sides.
        metric: The own score's name; `mean` for groups.
        own: The own value.
        own_stderr: Its standard error.
        own_items: Items it is over, of all tasks.
        published: The published value; of a group, the mean of the published task scores.
        published_stderr: Its sampling error by the number of items.
        own_change: Change relative to the own full-precision trial in percent; None without one.
        published_change: The same of the published values.
        table: Where the published values are printed.
        note: What to know.
    """

    sweep: str
    trial_key: str
    model: str
    published_model: str
    method: str
    parameters: str
    scheme: str
    calibration: str | None
    seed: int
    name: str
    tasks: tuple[str, ...]
    metric: str
    own: float
    own_stderr: float
    own_items: int
    published: float
    published_stderr: float
    own_change: float | None
    published_change: float | None
    table: str
    note: str

    @property
    def difference(self) -> float:
        """Own minus published."""
        return self.own - self.published

    @property
    def margin(self) -> float:
        """Half the width of the difference's 95 % interval: both errors count, as independent."""
        return _Z * math.hypot(self.own_stderr, self.published_stderr)

    @property
    def verdict(self) -> str:
        """`agrees` if no difference lies in the interval, else `differs`."""
        return "agrees" if abs(self.difference) <= self.margin else "differs"


def compare_with_published(
    store: SqlStore, sweep: str | None = None, aliases: Mapping[str, str] | None = None
) -> tuple[Comparison, ...]:
    """Set every own primary score that has a published counterpart beside it.

    Args:
        store: Where the results are.
        sweep: Only this sweep; None is all of the store.
        aliases: Own model -> published model, by their names, for models of other names.

    Raises:
        UnknownName: If an alias names no published model.
    """
    where, params = ("", []) if sweep is None else (" AND sweep = ?", [sweep])
    rows = store.query(_SCORES + where + _ORDER, params).dicts()
    models = {row["model"]: _published_model(row["model"], aliases or {}) for row in rows}
    trials: dict[tuple[str, str], list[Scores]] = {}
    for row in rows:
        if models[row["model"]] is not None:
            trials.setdefault((row["sweep"], row["trial_key"]), []).append(row)
    found: list[Comparison] = []
    for scores in trials.values():
        model = models[scores[0]["model"]] or ""
        found += _compare(scores, _baseline(scores, trials), model)
    return tuple(found)


def read_aliases(texts: Sequence[str]) -> dict[str, str]:
    """Read `OWN=PUBLISHED` pairs of model names.

    Raises:
        InputError: If a text has another form.
    """
    pairs = [text.partition("=") for text in texts]
    wrong = [text for text, pair in zip(texts, pairs, strict=True) if not (pair[0] and pair[2])]
    if wrong:
        raise InputError(f"--as {wrong[0]!r}: write OWN=PUBLISHED, as llada-tiny=LLaDA-8B-Base")
    return {own: published for own, _, published in pairs}


def _published_model(own: str, aliases: Mapping[str, str]) -> str | None:
    name = own.partition("@")[0].rstrip("/")
    wanted = aliases.get(own) or aliases.get(name)
    by_name = {_last(model): model for model in names()}
    if wanted is not None and _last(wanted) not in by_name:
        choices = sorted(model.rpartition("/")[2] for model in names())
        raise UnknownName("published model", wanted, choices)
    return by_name.get(_last(wanted or name))


def _last(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _baseline(
    scores: Sequence[Scores], trials: Mapping[tuple[str, str], Sequence[Scores]]
) -> dict[str, float]:
    """Scores by task of the full-precision trial of the same sweep, model, protocol and seed."""
    same = ("sweep", "model", "protocol_key", "seed")
    for others in trials.values():
        alike = all(others[0][name] == scores[0][name] for name in same)
        if alike and others[0]["method"] == FULL_PRECISION_METHOD:
            return {row["task"]: row["value"] for row in others}
    return {}


def _compare(
    scores: Sequence[Scores], baseline: Mapping[str, float], model: str
) -> Iterator[Comparison]:
    trial = scores[0]
    printed = _printed(model, trial["method"], trial["scheme"])
    unquantized = _printed(model, FULL_PRECISION_METHOD, str(FULL_PRECISION))
    full = {name: cell.value for name, cell in unquantized.items()}
    known = {row["task"]: row for row in scores if plain_name(row["task"]) in printed}
    groups = {name: tasks for name, tasks in by_group(known).items() if len(tasks) > 1}
    for name, tasks in [*((task, (task,)) for task in known), *groups.items()]:
        theirs = [printed[plain_name(task)] for task in tasks]
        before = [baseline[task] for task in tasks if task in baseline]
        full_scores = [full[cell.task] for cell in theirs if cell.task in full]
        yield _mean(
            [known[task] for task in tasks],
            theirs,
            name=name,
            own_change=_change([known[task]["value"] for task in tasks], before),
            published_change=_change([cell.value for cell in theirs], full_scores),
            left_out=_left_out(name, tasks, printed),
        )


def _mean(
    own: Sequence[Scores],
    theirs: Sequence[Cell],
    *,
    name: str,
    own_change: float | None,
    published_change: float | None,
    left_out: str,
) -> Comparison:
    trial, size = own[0], len(own)
    is_baseline = trial["method"] == FULL_PRECISION_METHOD
    return Comparison(
        **{key: trial[key] for key in _OF_TRIAL},
        published_model=theirs[0].model,
        name=name,
        tasks=tuple(row["task"] for row in own),
        metric=trial["metric"] if size == 1 else "mean",
        own=100 * math.fsum(row["value"] for row in own) / size,
        own_stderr=100 * math.hypot(*map(_own_error, own)) / size,
        own_items=sum(row["n"] for row in own),
        published=math.fsum(cell.value for cell in theirs) / size,
        published_stderr=math.hypot(*(cell.stderr or 0.0 for cell in theirs)) / size,
        own_change=None if is_baseline else own_change,
        published_change=None if is_baseline else published_change,
        table=", ".join(dict.fromkeys(cell.table for cell in theirs)),
        note=left_out if size > 1 else "; ".join(_notes(own, theirs)),
    )


def _printed(model: str, method: str, scheme: str) -> dict[str, Cell]:
    """Published task scores of one model, method and scheme by task."""
    found: dict[str, Cell] = {}
    for cell in cells():
        same = cell.is_task and (cell.model, cell.method) == (model, method)
        if same and _alike(cell.scheme, scheme):
            found.setdefault(cell.task, cell)
    return found


def _alike(published: str, own: str) -> bool:
    """Whether bits and groups are equal; the study says grids and caches by method."""
    first, second = QuantScheme.parse(published), QuantScheme.parse(own)
    return (first.w_bits, first.a_bits, first.group_size) == (
        second.w_bits,
        second.a_bits,
        second.group_size,
    )


def _own_error(row: Scores) -> float:
    """The own standard error; where all items are right or wrong, or there is one, binomial."""
    if row["stderr"]:
        return float(row["stderr"])
    return binomial_error(min(max(row["value"], 0.0), 1.0), row["n"])


def _change(scores: Sequence[float], full: Sequence[float]) -> float | None:
    """Change of a mean in percent of full precision's, over the same tasks."""
    before = math.fsum(full)
    if len(full) != len(scores) or before <= 0:
        return None
    return 100 * (math.fsum(scores) - before) / before


def _left_out(name: str, tasks: Sequence[str], printed: Mapping[str, Cell]) -> str:
    missing = sorted(set(by_group(printed).get(name, ())) - {plain_name(task) for task in tasks})
    return f"{name}: published also for {', '.join(missing)}" if missing else ""


def _notes(own: Sequence[Scores], theirs: Sequence[Cell]) -> Iterator[str]:
    for row, cell in zip(own, theirs, strict=True):
        if cell.items is not None and row["n"] < cell.items:
            yield f"{row['task']}: own over {row['n']} of {cell.items} items"
        if cell.note:
            yield f"{row['task']}: {cell.note}"
