import pytest
import torch

from dllm_sweep.decoding import draws as module
from dllm_sweep.decoding.draws import Draws
from dllm_sweep.decoding.window import compact

PLACES = torch.tensor([[2, 5, 6], [0, 1, 3]])


def make(seeds, places=PLACES, lengths=(8, 4)):
    generators = [torch.Generator().manual_seed(one) for one in seeds]
    return Draws(generators, lengths, places, [places.shape[1]] * len(seeds))


@pytest.mark.parametrize("name", ["uniform", "exponential"])
def test_a_row_s_numbers_are_those_of_its_seed_and_places(name):
    both = getattr(make([1, 2]), name)()
    alone = getattr(make([2], PLACES[1:], [4]), name)()
    assert torch.equal(both[1:], alone)
    # A position's number does not depend on which others are asked for.
    fewer = getattr(make([1, 2], PLACES[:, 1:]), name)()
    assert torch.equal(both[:, 1:], fewer)


@pytest.mark.parametrize("most", [0, 2**22], ids=["one number a position", "one a token"])
def test_tokens_follow_the_softmax_of_the_scaled_logits(monkeypatch, most):
    monkeypatch.setattr(module, "MOST_NOISE", most)
    size = 20_000
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0], dtype=torch.float64).expand(1, size, 4)
    draws = make([3], torch.arange(size)[None], [size])
    for tokens in (draws.gumbel_tokens(logits, 0.5), draws.categorical_tokens(logits / 0.5)):
        found = torch.bincount(tokens[0], minlength=4) / size
        assert torch.allclose(found.double(), (logits[0, 0] / 0.5).softmax(0), atol=0.015)
        assert found[2] == 0


def test_categorical_tokens_are_those_of_multinomial():
    logits = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(0)).double()
    expected = torch.multinomial(
        logits[0].float().softmax(-1), 1, generator=torch.Generator().manual_seed(9)
    )
    assert make([9], PLACES[:1], [8]).categorical_tokens(logits)[0].tolist() == (
        expected[:, 0].tolist()
    )


def test_fillers_take_no_random_numbers():
    logits = torch.randn(1, 3, 50, generator=torch.Generator().manual_seed(0)).double()
    few, generator = make([9], PLACES[:1], [8]), torch.Generator().manual_seed(9)
    few.counts = [2]
    short = Draws([generator], [8], PLACES[:1, :2], [2])
    assert torch.equal(
        few.categorical_tokens(logits)[:, :2], short.categorical_tokens(logits[:, :2])
    )
    assert torch.equal(few.generators[0].get_state(), generator.get_state())


@pytest.mark.parametrize("multiple", [1, 4, 16])
def test_the_chosen_places_come_first_and_fillers_are_marked(multiple):
    chosen = torch.tensor([[False, True, False, True, True, False], [False] * 5 + [True]])
    order, valid = compact(chosen, multiple=multiple)
    assert order.shape[1] == {1: 3, 4: 4, 16: 6}[multiple]
    assert [order[row][valid[row]].tolist() for row in (0, 1)] == [[1, 3, 4], [5]]
