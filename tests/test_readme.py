"""What the README shows is true: its Python runs, its sweep is valid, its links lead somewhere."""

import re
from pathlib import Path

import pytest

from dllm_sweep.sweep_file import parse

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_python_example_answers_the_question_and_quantizes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    answer, bits = capsys.readouterr().out.splitlines()
    assert f"# {answer}" in example, "the README shows the answer that the model gives"
    assert float(bits) == pytest.approx(4 + (16 + 4) / 128)


def test_the_sweep_file_shown_is_a_valid_one(tmp_path):
    (example,) = blocks("yaml")
    assert parse(example, tmp_path / "sweep.yaml").name == "my-sweep"


def test_every_link_of_the_readme_and_the_docs_leads_to_a_file():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert broken == []
