"""What commands learn from a store before a sweep is in it."""

from dllm_sweep.stored import stored_times, stored_trials, stored_units


def test_a_database_that_is_still_empty_has_no_trials(postgres):
    with postgres.database() as url:
        assert stored_trials(url, "sweep") == ()
        assert stored_units(url, "sweep") == ()
        assert stored_times(url) == ()


def test_a_file_that_is_not_there_yet_has_no_trials(tmp_path):
    assert stored_trials(str(tmp_path / "store.db"), "sweep") == ()
