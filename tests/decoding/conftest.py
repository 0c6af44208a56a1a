import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dllm_sweep import load_model

DATA = Path(__file__).parents[1] / "data"
CASES = json.loads((DATA / "llada-golden" / "cases.json").read_text())["cases"]


@pytest.fixture(scope="session")
def model():
    return load_model(str(DATA / "llada-random"), device="cpu")


@pytest.fixture(scope="session")
def golden_cases():
    """Give all cases of a kind with their tensors."""

    def cases(kind):
        found = [case for case in CASES if case["kind"] == kind]
        return [
            (case, load_file(DATA / "llada-golden" / f"{case['id']}.safetensors")) for case in found
        ]

    return cases
