import pytest
import torch

from dllm_sweep import plugins
from dllm_sweep.decoding.base import BlindAlgorithm
from dllm_sweep.decoding.draws import Draws
from dllm_sweep.decoding.entropy import PLUGIN as ENTROPY
from dllm_sweep.decoding.low_confidence import PLUGIN as LOW_CONFIDENCE
from dllm_sweep.decoding.maskgit_plus import PLUGIN as MASKGIT_PLUS
from dllm_sweep.decoding.options import ALGORITHM, SAMPLERS, algorithms_of, sampler_of
from dllm_sweep.decoding.origin import PLUGIN as ORIGIN
from dllm_sweep.decoding.topk_margin import PLUGIN as TOPK_MARGIN

RANKED = [name for name in plugins.names(ALGORITHM) if name != "origin"]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def draws(*seeds):
    places = torch.arange(5).repeat(len(seeds), 1)
    generators, counts = [generator(seed) for seed in seeds], [5] * len(seeds)
    return Draws(generators, counts, places, counts)


def logits_and_tokens(*shape):
    logits = torch.randn(*shape, generator=generator(0), dtype=torch.float64)
    return logits, logits.argmax(-1)


@pytest.mark.parametrize("name", RANKED)
def test_every_algorithm_rates_rows_independently_in_float64(name):
    rule = plugins.load(ALGORITHM, name)
    logits, tokens = logits_and_tokens(3, 5, 11)
    together = rule.confidence(logits, tokens, draws(1, 2, 3))
    assert together.shape == (3, 5)
    assert together.dtype == torch.float64
    alone = rule.confidence(logits[1:2], tokens[1:2], draws(2))
    assert torch.equal(together[1:2], alone)


def test_every_algorithm_belongs_to_one_sampler():
    assert algorithms_of("blockwise") == ("low_confidence", "random")
    assert algorithms_of("timeline") == ("entropy", "maskgit_plus", "origin", "topk_margin")
    assert all(sampler_of(name) in SAMPLERS for name in plugins.names(ALGORITHM))


def test_low_confidence_ranks_as_the_probabilities_do():
    logits, tokens = logits_and_tokens(1, 40, 11)
    probabilities = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    rated = LOW_CONFIDENCE.confidence(logits, tokens, draws(0))
    assert torch.equal(rated.argsort(), probabilities.argsort())
    assert torch.allclose(rated.sigmoid(), probabilities)


def test_near_certainties_do_not_tie():
    logits = torch.zeros(1, 2, 4, dtype=torch.float64)
    logits[0, :, 0] = torch.tensor([60.0, 61.0])
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    assert torch.equal(logits.softmax(-1)[0, :, 0], torch.ones(2, dtype=torch.float64))
    first, second = LOW_CONFIDENCE.confidence(logits, tokens, draws(0))[0]
    assert first < second


def test_dream_s_confidences_are_what_their_names_say():
    logits, tokens = logits_and_tokens(2, 5, 11)
    logits = torch.cat((logits, torch.full((2, 5, 1), -torch.inf)), dim=-1)
    p = logits.softmax(-1)
    ordered = p.sort(-1, descending=True).values
    expected = {
        MASKGIT_PLUS: ordered[..., 0],
        TOPK_MARGIN: ordered[..., 0] - ordered[..., 1],
        ENTROPY: -torch.special.entr(p).sum(-1),
    }
    for rule, values in expected.items():
        assert torch.allclose(rule.confidence(logits, tokens, draws(0, 1)), values)


def test_origin_picks_each_position_with_the_share_s_probability():
    assert isinstance(ORIGIN, BlindAlgorithm)
    share = torch.tensor(0.25)
    assert abs(ORIGIN.picks(40_000, share, generator(0)).double().mean() - 0.25) < 0.01
    assert ORIGIN.picks(7, torch.tensor(1.0), generator(0)).all()
    assert not ORIGIN.picks(7, torch.tensor(0.0), generator(0)).any()
