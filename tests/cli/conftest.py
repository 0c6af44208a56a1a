"""The working folder of a person who is about to launch a sweep."""

import pytest


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty working folder with a model, a task and a text, and no store set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DLLM_SWEEP_STORE", raising=False)
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "config.json").write_text('{"model_type": "llada"}')
    (tmp_path / "own.yaml").write_text("task: own\n")
    (tmp_path / "text.txt").write_text("some words\n")
    return tmp_path
