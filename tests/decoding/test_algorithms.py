import pytest
import torch

from dllm_sweep import plugins
from dllm_sweep.decoding.low_confidence import PLUGIN as LOW_CONFIDENCE
from dllm_sweep.decoding.options import ALGORITHM


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("name", plugins.names(ALGORITHM))
def test_every_algorithm_rates_rows_independently_in_float64(name):
    rule = plugins.load(ALGORITHM, name)
    logits = torch.randn(3, 5, 11, generator=generators(0)[0], dtype=torch.float64)
    tokens = logits.argmax(-1)
    together = rule.confidence(logits, tokens, generators(1, 2, 3))
    assert together.shape == (3, 5)
    assert together.dtype == torch.float64
    alone = rule.confidence(logits[1:2], tokens[1:2], generators(2))
    assert torch.equal(together[1:2], alone)


def test_confidence_ranks_as_the_probabilities_do():
    logits = torch.randn(1, 40, 11, generator=generators(0)[0], dtype=torch.float64)
    tokens = logits.argmax(-1)
    probabilities = logits.softmax(-1).gather(-1, tokens[..., None])[..., 0]
    rated = LOW_CONFIDENCE.confidence(logits, tokens, [])
    assert torch.equal(rated.argsort(), probabilities.argsort())
    assert torch.allclose(rated.sigmoid(), probabilities)


def test_near_certainties_do_not_tie():
    logits = torch.zeros(1, 2, 4, dtype=torch.float64)
    logits[0, :, 0] = torch.tensor([60.0, 61.0])
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    assert torch.equal(logits.softmax(-1)[0, :, 0], torch.ones(2, dtype=torch.float64))
    first, second = LOW_CONFIDENCE.confidence(logits, tokens, [])[0]
    assert first < second
