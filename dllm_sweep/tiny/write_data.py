"""Write the shipped task and calibration files again, byte for byte.

`python -m dllm_sweep.tiny.write_data` writes into the package; `--out DIR` writes elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from dllm_sweep.tiny import corpus, facts, measure, programs

PACKAGE = Path(__file__).resolve().parents[1]
SEED = 7

#: Items of each stratum in the tasks, chosen from measured accuracies (docs/embedded-models.md).
MATH = {
    "chain-2": 60,
    "chain-3": 80,
    "large-2": 60,
    "product-2": 80,
    "product-1": 80,
    "relation-3": 40,
}
CODE = {
    "nested-2": 16,
    "nested-4": 24,
    "nested-6": 32,
    "sequence-3": 16,
    "sequence-5": 24,
    "backwards-4": 24,
    "branch": 24,
    "branches": 32,
    "loop": 24,
    "listing": 24,
    "collected-4": 32,
    "collected-6": 40,
    "line-19": 48,
    "line-99": 40,
}
FACTS = {"frequent": 40, "common": 60, "twice": 80, "once": 220}
CALIBRATION_DOCUMENTS = 640
CONVERSATIONS = 640

#: Order of tiny_code's items within a stratum, chosen so that its first 30 or 100 items score at
#: full precision as all of them do; as drawn, the first 30 held twice their share of misses.
CODE_ORDER = 11

Row = dict[str, Any]


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE, help="the package, or another folder")
    write_all(parser.parse_args().out)


def write_all(folder: Path) -> list[Path]:
    """Write the files below a folder as they lie in the package; give their paths."""
    files = {
        "evaluation/tasks/tiny_math.jsonl": math_rows(),
        "evaluation/tasks/tiny_code.jsonl": code_rows(),
        "evaluation/tasks/tiny_facts.jsonl": fact_rows(),
        "calibration/data/tiny-text.jsonl": calibration_rows(),
        "calibration/data/tiny-chat.jsonl": chat_rows(),
    }
    return [_write(folder / name, rows) for name, rows in files.items()]


def math_rows() -> list[Row]:
    """Items of tiny_math: prompt, worked response, answer as a string, stratum."""
    return _mixed(MATH, lambda name, count: map(_math_row, _problems(name, count)))


def code_rows() -> list[Row]:
    """Items of tiny_code: prompt up to the `def` line, reference body, tests, stratum."""
    return _mixed(CODE, _ordered_code_rows)


def _ordered_code_rows(stratum: str, count: int) -> list[Row]:
    rows = [_code_row(item) for item in _programs(stratum, count)]
    Random(f"{stratum} order {CODE_ORDER}").shuffle(rows)
    return rows


def fact_rows() -> list[Row]:
    """Items of tiny_facts: prompt, four choices, index of the right one, stratum."""
    return _mixed(FACTS, lambda name, count: map(_fact_row, _questions(name, count)))


def calibration_rows() -> list[Row]:
    """Documents of the training mixture, each `{"text": ...}`."""
    texts = corpus.training_texts(SEED)
    return [{"text": text} for text in itertools.islice(texts, CALIBRATION_DOCUMENTS)]


def chat_rows() -> list[Row]:
    """Prompts and answers of the training mixture, drawn apart from its running text."""
    rng = Random(f"conversations {SEED}")
    drawn = (corpus.example(rng) for _ in itertools.count())
    asked = ({"question": one.prompt, "answer": one.response} for one in drawn if one.prompt)
    return list(itertools.islice(asked, CONVERSATIONS))


def _problems(stratum: str, count: int) -> list[Any]:
    return measure.sample_problems(stratum, count, SEED)


def _programs(stratum: str, count: int) -> list[Any]:
    return measure.sample_programs(stratum, count, SEED)


def _questions(stratum: str, count: int) -> list[Any]:
    # A value follows a word here: scored as one text, ": " would be cut off as a token of its own.
    asked = measure.sample_questions(stratum, 3 * count, SEED)
    return [item for item in asked if not item.prompt.endswith(":")][:count]


def _math_row(item: Any) -> Row:
    return {
        "prompt": item.prompt,
        "response": item.response,
        "answer": str(item.answer),
        "stratum": item.stratum,
    }


def _code_row(item: programs.Program) -> Row:
    return {
        "prompt": item.prompt,
        "response": item.response,
        "tests": programs.hidden_tests(item),
        "stratum": item.stratum,
    }


def _fact_row(item: facts.Question) -> Row:
    return {
        "prompt": item.prompt,
        "choices": list(item.choices),
        "answer": item.answer,
        "stratum": item.stratum,
    }


def _mixed(counts: Mapping[str, int], rows_of: Callable[[str, int], Iterable[Row]]) -> list[Row]:
    """Rows of all strata, spread evenly: the first N items are composed like all of them."""
    placed = [
        ((place + 0.5) / count, row)
        for name, count in counts.items()
        for place, row in enumerate(rows_of(name, count))
    ]
    return [row for _, row in sorted(placed, key=lambda pair: pair[0])]


def _write(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
