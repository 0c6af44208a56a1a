"""The published tables as data: what is printed agrees with itself, or is marked."""

import math

import pytest

from dllm_sweep.published import CHANGE, MEAN, binomial_error, cells, names
from dllm_sweep.spec import QuantScheme

ROUNDING = 0.05
TASKS = {
    (cell.table, cell.model, cell.method, cell.scheme, cell.task): cell
    for cell in cells()
    if cell.is_task
}


def row_of(cell):
    return cell.table, cell.model, cell.method, cell.scheme


def mean_of(cell, method=None, scheme=None):
    row = (cell.table, cell.model, method or cell.method, scheme or cell.scheme)
    return math.fsum(TASKS[(*row, task)].value for task in cell.tasks) / len(cell.tasks)


def test_all_tables_are_there():
    counts = {}
    for cell in cells():
        counts[cell.table] = counts.get(cell.table, 0) + cell.is_task
    assert counts == {
        **{"Table 1": 60, "Table 2": 70, "Table 3": 40, "Table 4": 56, "Table 5": 20},
        "repository": 6,
    }
    assert len(names()) == 4


def test_no_number_is_there_twice_and_schemes_are_schemes():
    keys = [(*row_of(cell), cell.task, cell.metric) for cell in cells()]
    assert len(keys) == len(set(keys))
    for cell in cells():
        scheme = QuantScheme.parse(cell.scheme)
        assert str(scheme) == cell.scheme
        assert scheme.is_full_precision == (cell.method == "fp")


def test_scores_that_two_tables_print_are_equal():
    seen = {}
    for (_, model, method, scheme, task), cell in TASKS.items():
        assert seen.setdefault((model, method, scheme, task), cell.value) == cell.value


@pytest.mark.parametrize("cell", [c for c in cells() if c.metric == MEAN], ids=str)
def test_a_printed_mean_is_that_of_its_tasks_or_marked(cell):
    agrees = abs(mean_of(cell) - cell.value) <= 2 * ROUNDING + 1e-9
    assert agrees != ("misprint" in cell.note)
    if cell.corrected is not None:
        row = [one.value for key, one in TASKS.items() if key[:4] == row_of(cell)]
        group = [one for one in row if cell.table in ("Table 1", "Table 2")]
        group = group or [TASKS[(*row_of(cell), task)].value for task in cell.tasks]
        assert cell.corrected == pytest.approx(math.fsum(group) / len(group), abs=ROUNDING)


@pytest.mark.parametrize("cell", [c for c in cells() if c.metric == CHANGE], ids=str)
def test_a_printed_change_is_that_of_its_means_or_marked(cell):
    own, full = mean_of(cell), mean_of(cell, "fp", "w16a16")
    tolerance = 100 * ROUNDING * (1 / full + own / full**2) + ROUNDING
    assert abs(100 * (own - full) / full - cell.value) <= tolerance or "misprint" in cell.note


def test_the_known_misprints_are_marked():
    found = {
        (cell.table, cell.method, cell.scheme, cell.task, cell.metric, cell.value, cell.corrected)
        for cell in cells()
        if "misprint" in cell.note
    }
    assert found == {
        ("Table 1", "gptq", "w4a16-g128", "general", CHANGE, 0.3, 0.8),
        ("Table 1", "awq", "w4a16-g128", "general", CHANGE, -0.1, -0.9),
        ("Table 2", "quarot", "w4a4", "general", MEAN, 59.2, 61.2),
        ("Table 4", "smoothquant", "w8a8", "code", MEAN, 38.6, 37.2),
    }
    first = [cell for cell in cells() if (cell.table, cell.metric) == ("Table 1", MEAN)]
    assert all("arc_easy" not in cell.tasks and cell.corrected is not None for cell in first)


def test_the_sampling_error_is_that_of_the_items():
    cell = TASKS["Table 3", "GSAI-ML/LLaDA-8B-Base", "fp", "w16a16", "humaneval"]
    assert (cell.items, cell.value) == (164, 32.9)
    assert cell.stderr == pytest.approx(3.67, abs=0.01)
    assert 0 < binomial_error(0.0, 164) < 0.01
    assert binomial_error(1.0, 164) == pytest.approx(binomial_error(0.0, 164))
