"""`samples`: what a trial answered beside full precision."""

import csv
import io
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.reports.samples import pair_up, render_samples, summary

ROOT = Path(__file__).parents[2]
ONE = Sample(
    task="t",
    doc_id=0,
    prompt="p",
    requests_sha256="a",
    target="1",
    output="it is 1",
    answer="1",
    log_likelihoods=(),
    score=1.0,
)


def copy(store, path):
    with sqlite3.connect(store) as source, sqlite3.connect(path) as target:
        source.backup(target)


@pytest.mark.parametrize(
    ("own", "change"),
    [
        ({}, ""),
        ({"score": 0.0, "answer": "2"}, "lost"),
        ({"output": "surely 1"}, "other answer"),
        ({"requests_sha256": "b"}, "other prompt"),
    ],
)
def test_a_change_is_told_by_score_text_and_prompt(own, change):
    (pair,) = pair_up([replace(ONE, **own)], [ONE])
    assert pair.change == change
    (turned,) = pair_up([ONE], [replace(ONE, **own)])
    assert turned.change == {"lost": "gained"}.get(change, change)


def test_a_member_of_a_group_is_named_even_if_it_is_the_only_one_shown():
    pairs = pair_up([replace(ONE, task="group_member")], [])
    assert "group_member" in render_samples(pairs, "table", "group")
    assert "group_member" not in render_samples(pairs, "table", "group_member")


def test_the_difference_is_that_of_pairs():
    full = [replace(ONE, doc_id=number) for number in range(4)]
    own = [replace(one, score=float(one.doc_id > 0)) for one in full]
    text = "4 items: 1 lost, 0 gained, 0 other answer; difference of the means -0.2500 ± 0.2500"
    assert summary(pair_up(own, full)).startswith(text)


@pytest.mark.parametrize("task", ["tiny_math", "tiny_facts", "tiny_code"])
def test_scores_shown_are_those_of_the_store(run_json, key_of, task):
    rows = run_json("samples", key_of("rtn")[:12], task)
    stored = run_json("sql", f"SELECT method, value, n FROM results WHERE task = '{task}'")
    by_method = {row["method"]: row for row in stored}
    for side, method in (("trial", "rtn"), ("full_precision", "fp")):
        scores = [row[side]["score"] for row in rows]
        assert len(scores) == by_method[method]["n"]
        assert sum(scores) / len(scores) == pytest.approx(by_method[method]["value"])
    assert [row["doc_id"] for row in rows] == list(range(len(rows)))


def test_flips_are_marked_and_chosen(run_json, run, key_of):
    words = ("samples", key_of("rtn")[:12], "tiny_math")
    every, changed = run_json(*words), run_json(*words, "--changed")
    assert changed == [row for row in every if row["change"]]
    assert {"lost", "other answer"} & {row["change"] for row in changed}
    wrong = run_json(*words, "--wrong", "--limit", 2)
    assert wrong == [row for row in every if row["trial"]["score"] < 1][:2]
    lines = run(*words).output.splitlines()
    assert lines[0].split() == [
        "item",
        "target",
        *["full", "precision", "score", "this", "trial", "score"],
        "change",
    ]
    assert lines[-1].startswith("9 items: ")


def test_one_item_is_shown_whole(run, run_json, key_of):
    words = ("samples", key_of("rtn")[:12], "tiny_math", "--doc", 4)
    (row,) = run_json(*words)
    text = run(*words).output
    for part in (row["prompt"], row["trial"]["output"], row["full_precision"]["output"]):
        assert part in text
    assert run("samples", key_of("rtn")[:12], "tiny_math", "--doc", 99).exit_code == 2


def test_csv_has_whole_texts(run, run_json, key_of):
    words = ("samples", key_of("rtn")[:12], "tiny_facts")
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv").output)))
    listed = run_json(*words)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in listed]
    assert all(row["log_likelihoods"].count(",") == 3 for row in rows)


def test_the_baseline_stands_alone(run, run_json, key_of):
    rows = run_json("samples", key_of("fp")[:12], "tiny_facts")
    assert all(row["full_precision"] is None and row["change"] == "" for row in rows)
    assert "no full-precision answers" in run("samples", key_of("fp")[:12], "tiny_facts").output


def test_wrong_names_and_missing_files_are_told(run, key_of, finished, tmp_path):
    done = run("samples", key_of("fp")[:12], "tiny_maths")
    assert (done.exit_code, "did you mean 'tiny_math'?" in done.output) == (2, True)
    copy(finished, tmp_path / "alone.db")
    done = run("samples", key_of("fp")[:12], "tiny_math", store=tmp_path / "alone.db")
    assert done.exit_code == 2
    assert "name their folder with --files" in done.output
    found = run(
        *("samples", key_of("fp")[:12], "tiny_math", "--files", finished.parent / "store-files"),
        store=tmp_path / "alone.db",
    )
    assert found.exit_code == 0, found.output


def test_answers_behind_a_url_are_read_without_leaving_copies(run, key_of, finished, tmp_path):
    copy(finished, tmp_path / "alone.db")
    url = f"local://{finished.parent / 'store-files'}"
    words = ("samples", key_of("rtn")[:12], "tiny_math", "--files", url)
    assert run(*words, store=tmp_path / "alone.db").output == run(*words[:3]).output
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_it_works_where_neither_torch_nor_ray_is_installed(finished, key_of):
    code = (
        "import sys\n"
        "for name in ('torch', 'ray', 'transformers', 'lm_eval', 'datasets'):\n"
        "    sys.modules[name] = None\n"
        "from dllm_sweep.cli import main\n"
        f"main(['samples', {key_of('rtn')[:12]!r}, 'tiny_math', '--store', {str(finished)!r}])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "9 items: " in done.stdout
