"""Pages that say which test holds what: the rows of their tables, and the tests they name."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def numbered_rows(page):
    """Cells of the tables' rows whose first cell is a number, by that number."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return {
        int(cells[0]): cells
        for line in text.splitlines()
        if line.startswith("| ")
        and (cells := [cell.strip() for cell in line.strip("|").split("|")])[0].isdigit()
    }


def missing_tests(cell):
    """Tests that a cell names, as `file::function`, and that are not there."""
    named = [part.strip() for part in cell.split(",") if part.strip()]
    assert named
    return [test for test in named if not _exists(*test.split("::"))]


def _exists(file, function):
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
