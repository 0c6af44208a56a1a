"""What the trials of each model ask for, by the text of a sweep file."""

import pytest

from dllm_sweep.demands import resources_of
from dllm_sweep.errors import InputError
from dllm_sweep.sizes import size_in_bytes
from dllm_sweep.sweep_entries import Resources

TEXT = """
models:
  - llada-tiny
  - {name: GSAI-ML/LLaDA-8B-Base, resources: {gpus: 2, labels: {gpu: h200}}}
  - {name: ./mine, resources: {memory: 16GiB}}
resources: {gpus: 1, cpus: 4, labels: {zone: a}}
"""


def test_a_model_without_resources_of_its_own_gets_the_sweeps():
    found = resources_of(TEXT).of("llada-tiny")
    assert (found.gpus, found.cpus, found.memory_bytes, found.labels) == (1, 4, None, {"zone": "a"})


def test_a_models_own_resources_go_before_the_sweeps_one_by_one():
    found = resources_of(TEXT).of("GSAI-ML/LLaDA-8B-Base@0123456789abcdef")
    assert (found.gpus, found.cpus) == (2, 4)
    assert found.labels == {"zone": "a", "gpu": "h200"}


def test_a_folder_is_known_by_the_end_of_its_path():
    assert resources_of(TEXT).of("/home/me/sweeps/mine").memory_bytes == 16 * 2**30


def test_a_file_that_says_nothing_asks_for_nothing():
    assert resources_of("models: llada-tiny").of("llada-tiny") == Resources()
    assert resources_of("").of("llada-tiny") == Resources()


@pytest.mark.parametrize(
    ("text", "size"),
    [("16GiB", 16 * 2**30), ("1.5 kB", 1500), ("7", 7), (12, 12), ("2T", 2 * 10**12), (None, None)],
)
def test_sizes_are_read_with_their_units(text, size):
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["much", "16 apples", "-1GB", "0GB", ""])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="is not a size"):
        size_in_bytes(text)
