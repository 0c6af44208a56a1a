import pytest
import torch

from dllm_sweep.decoding import draws as module
from dllm_sweep.decoding.draws import Draws

PLACES = torch.tensor([[2, 5, 6], [0, 1, 3]])


def make(seeds, places=PLACES, lengths=(8, 4)):
    return Draws([torch.Generator().manual_seed(one) for one in seeds], lengths, places)


@pytest.mark.parametrize("name", ["uniform", "exponential"])
def test_a_row_s_numbers_are_those_of_its_seed_and_places(name):
    both = getattr(make([1, 2]), name)()
    alone = getattr(make([2], PLACES[1:], [4]), name)()
    assert torch.equal(both[1:], alone)
    # A position's number does not depend on which others are asked for.
    fewer = getattr(make([1, 2], PLACES[:, 1:]), name)()
    assert torch.equal(both[:, 1:], fewer)


@pytest.mark.parametrize("most", [0, 2**24], ids=["one number a token", "Gumbel noise"])
def test_tokens_follow_the_softmax_of_the_scaled_logits(monkeypatch, most):
    monkeypatch.setattr(module, "MOST_NOISE", most)
    size = 20_000
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0], dtype=torch.float64).expand(1, size, 4)
    places = torch.arange(size)[None]
    tokens = make([3], places, [size]).tokens(logits, 0.5)
    found = torch.bincount(tokens[0], minlength=4) / size
    assert torch.allclose(found.double(), (logits[0, 0] / 0.5).softmax(0), atol=0.015)
    assert found[2] == 0
