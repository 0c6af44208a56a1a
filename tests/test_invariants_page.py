"""The table of invariants names tests that exist."""

import pytest

from tests.named_tests import missing_tests, numbered_rows

ROWS = numbered_rows("invariants.md")


def test_all_25_are_there():
    assert list(ROWS) == list(range(1, 26))


@pytest.mark.parametrize("number", ROWS)
def test_every_test_that_is_named_exists(number):
    assert missing_tests(ROWS[number][2]) == []
