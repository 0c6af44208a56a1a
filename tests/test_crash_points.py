"""The table of crash points names tests and kinds of faults that exist."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "crash-points.md").read_text(encoding="utf-8")
ROWS = {
    int(cells[0]): cells
    for line in PAGE.splitlines()
    if line.startswith("| ")
    and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].isdigit()
}


def kinds():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from chaos_kit.kinds import BY_NAME

    return BY_NAME


def listed(cell):
    return [part.strip() for part in cell.split(",") if part.strip()]


def test_all_25_are_there():
    assert list(ROWS) == list(range(1, 26))


@pytest.mark.parametrize("number", ROWS)
def test_every_test_that_is_named_exists(number):
    named = listed(ROWS[number][3])
    assert named
    for test in named:
        file, _, function = test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, test


def named_in(cell, known):
    """The kinds that a cell names, and what else it says; some have a comma in their names."""
    found = set()
    for name in sorted(known, key=len, reverse=True):
        if name in cell:
            found.add(name)
            cell = cell.replace(name, "")
    return found, cell.replace(",", "").strip()


@pytest.mark.parametrize("number", ROWS)
def test_every_kind_of_fault_that_is_named_exists_and_knows_its_number(number):
    known = kinds()
    found, rest = named_in(ROWS[number][4], known)
    assert rest == ""
    assert found == {name for name, kind in known.items() if number in kind.points}
