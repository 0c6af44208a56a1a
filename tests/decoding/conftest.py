from pathlib import Path

import pytest

from dllm_sweep import load_model

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="session")
def model():
    return load_model(str(DATA / "llada-random"), device="cpu")


@pytest.fixture(scope="session")
def shifted():
    return load_model(str(DATA / "dream-random"), device="cpu")
