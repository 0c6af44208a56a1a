"""The table of crash points names tests and kinds of faults that exist."""

import sys

import pytest

from tests.named_tests import ROOT, missing_tests, numbered_rows

ROWS = numbered_rows("crash-points.md")


def kinds():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from chaos_kit.kinds import BY_NAME

    return BY_NAME


def test_all_25_are_there():
    assert list(ROWS) == list(range(1, 26))


@pytest.mark.parametrize("number", ROWS)
def test_every_test_that_is_named_exists(number):
    assert missing_tests(ROWS[number][3]) == []


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
