"""The leaderboard: scores with standard errors, and what each trial lost to full precision.

Nothing here imports torch: a leaderboard is read on a laptop from a copied store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from dllm_sweep.reports.listing import Listing, as_csv, markdown, text_of
from dllm_sweep.reports.told_apart import axis_texts, differing_axes
from dllm_sweep.spec import FULL_PRECISION_METHOD

if TYPE_CHECKING:
    from dllm_sweep.db.store import SqlStore

SCORES_SQL = """SELECT sweep, trial_key, task, metric, value, stderr, n FROM results
WHERE is_primary ORDER BY sweep, trial_key, task, metric"""
_OF_SWEEP = """SELECT trial_key, task, value, stderr FROM results
WHERE is_primary AND sweep = ?"""
SHOWN = 40
"""Trials of a model that a table shows, its baselines and the best; nobody reads thousands."""
BOARD_SQL = """SELECT * FROM leaderboard ORDER BY sweep, protocol_key, model, place, label"""
_AT_ONCE = 500
LEGEND = (
    "Scores ± one standard error; delta is the mean's to full precision; a relative\n"
    "loss below 1 % is negligible, to 4 % moderate, above significant. Grids without\n"
    "-sym are asymmetric."
)


class Score(NamedTuple):
    """One task's primary score.

    Attributes:
        value: The score; None if it was not a finite number.
        stderr: Its standard error, if it has one.
    """

    value: float | None
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trial on a board.

    Attributes:
        row: Its row of the view `leaderboard`, by column name.
        scores: Its primary scores by task.
    """

    row: Mapping[str, Any]
    scores: Mapping[str, Score]

    @property
    def is_baseline(self) -> bool:
        """Whether it is the full-precision trial."""
        return bool(self.row["method"] == FULL_PRECISION_METHOD)


@dataclass(frozen=True, kw_only=True)
class Board:
    """The trials of one sweep and protocol: only these scores may be compared.

    Attributes:
        sweep: Name of the sweep.
        protocol_key: SHA-256 of the protocol.
        tasks: All tasks that have a score, sorted.
        entries: By model; each model's baseline first, then by mean, the best first.
        left_out: Trials beyond the best that were asked for.
    """

    sweep: str
    protocol_key: str
    tasks: tuple[str, ...]
    entries: tuple[Entry, ...]
    left_out: int = 0


def boards(
    store: SqlStore,
    sweep: str | None = None,
    protocol_keys: Collection[str] | None = None,
    *,
    best: int | None = None,
) -> tuple[Board, ...]:
    """Read the boards of one sweep or of all, one for each protocol.

    Args:
        store: Where the results are.
        sweep: Name of a sweep; None is all.
        protocol_keys: Only these protocols; None is all.
        best: Only so many trials of each model, its baselines and the best; None is all.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in store.leaderboard_rows(sweep).dicts():
        if protocol_keys is None or row["protocol_key"] in protocol_keys:
            groups.setdefault((row["sweep"], row["protocol_key"]), []).append(row)
    kept = {group: _best(rows, best) for group, rows in groups.items()}
    chosen: dict[str, list[str]] = {}
    for (name, _), rows in kept.items():
        chosen.setdefault(name, []).extend(row["trial_key"] for row in rows)
    few = best is not None
    scores = {name: _scores(store, name, keys if few else ()) for name, keys in chosen.items()}
    return tuple(
        _board(
            name,
            key,
            [Entry(row=row, scores=scores[name].get(row["trial_key"], {})) for row in rows],
            len(groups[name, key]) - len(rows),
        )
        for (name, key), rows in kept.items()
    )


def _best(rows: list[dict[str, Any]], best: int | None) -> list[dict[str, Any]]:
    """The baselines and the best of each model; `rows` have the best first."""
    if best is None:
        return rows
    seen: Counter[str] = Counter()
    kept = []
    for row in sorted(rows, key=lambda row: row["method"] != FULL_PRECISION_METHOD):
        seen[row["model"]] += 1
        if seen[row["model"]] <= best:
            kept.append(row)
    return kept


def _scores(store: SqlStore, sweep: str, keys: Sequence[str]) -> dict[str, dict[str, Score]]:
    """The primary scores of a sweep's trials by key and task; all trials if `keys` is empty."""
    found: dict[str, dict[str, Score]] = {}
    for start in range(0, max(len(keys), 1), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        only = f" AND trial_key IN ({', '.join('?' * len(some))})" if some else ""
        for key, task, value, stderr in store.query(_OF_SWEEP + only, [sweep, *some]).rows:
            found.setdefault(key, {})[task] = Score(value, stderr)
    return found


def _board(sweep: str, protocol_key: str, entries: Sequence[Entry], left_out: int) -> Board:
    return Board(
        sweep=sweep,
        protocol_key=protocol_key,
        tasks=tuple(sorted({task for entry in entries for task in entry.scores})),
        entries=tuple(sorted(entries, key=_rank)),
        left_out=left_out,
    )


def _rank(entry: Entry) -> tuple[Any, ...]:
    mean = entry.row["score_mean"]
    behind = mean is None
    return (
        entry.row["model"],
        not entry.is_baseline,
        behind,
        -(mean or 0.0),
        entry.row["label"],
        entry.row["trial_key"],
    )


def render(found: Iterable[Board], form: str, width: int | None = None) -> str:
    """Write boards as `table`, `csv`, `json` or `markdown`.

    Args:
        found: The boards.
        form: The format.
        width: Columns of the terminal, for a table; None is as wide as it gets.
    """
    found = tuple(found)
    if form == "json":
        return json.dumps([_record(board, entry) for board, entry in _all(found)], indent=1) + "\n"
    if form == "csv":
        return as_csv(_flat(found))
    if form == "markdown":
        return "\n".join(f"{_title(board)}\n\n{markdown(_wide(board))}" for board in found)
    from dllm_sweep.reports.board_text import board_text

    tables = [f"{_title(board)}\n{board_text(board, width)}{_more(board)}" for board in found]
    return "\n".join([*tables, LEGEND + "\n"]) if tables else "no results yet\n"


def _more(board: Board) -> str:
    return f"{board.left_out} trials more: --all lists them\n" if board.left_out else ""


def _title(board: Board) -> str:
    return f"Sweep {board.sweep}, protocol {board.protocol_key[:8]}"


def _all(found: Sequence[Board]) -> list[tuple[Board, Entry]]:
    return [(board, entry) for board in found for entry in board.entries]


def _record(board: Board, entry: Entry) -> dict[str, Any]:
    scores = {task: score._asdict() for task, score in sorted(entry.scores.items())}
    return {**entry.row, "parameters": json.loads(entry.row["parameters"]), "scores": scores}


def _flat(found: Sequence[Board]) -> Listing:
    """All boards in one table: the view's columns, then score and standard error by task."""
    pairs = _all(found)
    tasks = sorted({task for board in found for task in board.tasks})
    own = tuple(pairs[0][1].row) if pairs else ("sweep", "protocol_key", "trial_key")
    none = Score(value=None, stderr=None)
    rows = []
    for _, entry in pairs:
        found_scores = [entry.scores.get(task, none) for task in tasks]
        numbers = [number for score in found_scores for number in (score.value, score.stderr)]
        rows.append((*entry.row.values(), *numbers))
    columns = [name for task in tasks for name in (task, f"{task}_stderr")]
    return Listing((*own, *columns), tuple(rows))


def _wide(board: Board) -> Listing:
    columns = ("model", "method", "scheme", "calibration", "seed")
    trials = [entry.row for entry in board.entries]
    axes = [axis for axis in differing_axes(trials) if axis not in columns]
    rows = tuple(
        (
            *(entry.row[column] for column in columns),
            *texts,
            *(score_text(entry.scores.get(task)) for task in board.tasks),
            *_summary(entry),
        )
        for entry, texts in zip(board.entries, axis_texts(trials, axes), strict=True)
    )
    return Listing((*columns, *axes, *board.tasks, "mean", "delta", "bits", "class"), rows)


def _summary(entry: Entry) -> tuple[str, ...]:
    row = entry.row
    return (
        number_text(row["score_mean"]),
        number_text(None if entry.is_baseline else row["delta"], sign=True),
        number_text(row["average_bits"], digits=2),
        class_text(entry),
    )


def class_text(entry: Entry) -> str:
    """The degradation class, or why there is none."""
    if entry.row["note"]:
        return text_of(entry.row["note"])
    return "baseline" if entry.is_baseline else text_of(entry.row["degradation"])


def score_text(score: Score | None, *, compact: bool = False) -> str:
    """Write a score as `0.912 ± 0.014`, or as `.912±.014` where room is short."""
    if score is None or score.value is None:
        return "-"
    parts = [number_text(score.value)]
    if score.stderr is not None:
        parts.append(number_text(score.stderr))
    if compact:
        return "±".join(map(without_zero, parts))
    return " ± ".join(parts)


def without_zero(number: str) -> str:
    """Write `0.912` as `.912` and `-0.010` as `-.010`."""
    return number.replace("0.", ".", 1) if number.lstrip("+-").startswith("0.") else number


def number_text(value: float | None, *, digits: int = 3, sign: bool = False) -> str:
    """Write a number with a fixed number of decimals; `-` if there is none."""
    if value is None:
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
