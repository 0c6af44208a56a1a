"""The embedded tasks by the plain and by the saving paths: equal results, less work."""

import pytest
from evaluation import Case, measure

from dllm_sweep import load_model


@pytest.fixture(scope="module", params=["llada-tiny", "dream-tiny"])
def tiny(request):
    return load_model(request.param, device="cpu", dtype="float32")


def test_choices_of_one_token_take_one_row_for_all_draws_of_all_choices(tiny):
    result = measure(tiny, Case(task="tiny_facts", items=3, draws=8))
    assert result.is_equal
    assert (result.plain.rows, result.distinct_rows, result.saving.rows) == (3 * 4 * 8, 12, 3)
    assert result.holds


@pytest.mark.parametrize("task", ["tiny_math", "tiny_code"])
def test_written_answers_are_equal_and_no_work_is_added(tiny, task):
    result = measure(tiny, Case(task=task, items=2, window=16, block=8, has_goal=False))
    assert result.is_equal
    assert result.saving.tokens <= result.plain.tokens
    assert result.saving.full_tokens < 0.95 * result.plain.full_tokens
