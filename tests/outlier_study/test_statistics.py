import math

import numpy as np
import pytest
import torch

from dllm_sweep.outlier_study.statistics import ActivationStatistics


def activations(tokens=200, channels=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, channels, generator=generator) + 0.3
    x[:, 7] *= 20
    x[13, 30] = -500.0
    return x


def measured(x, step=None, top=5):
    statistics = ActivationStatistics.empty(x.shape[1], x.device)
    places = torch.arange(len(x))
    for part, place in zip(x.split(step or len(x)), places.split(step or len(x)), strict=True):
        statistics.add(part, place)
    return {(s.statistic, s.rank): s for s in statistics.summary(top)}


@pytest.mark.parametrize("step", [None, 1, 33])
def test_they_equal_a_direct_computation_over_all_values(step):
    x = activations()
    found, direct = measured(x, step), x.double().numpy()
    magnitude = np.abs(direct)
    channels, tokens = magnitude.max(0), magnitude.max(1)
    for rank in range(5):
        channel, token = found["channel_max", rank], found["token_max", rank]
        assert channel.index == np.argsort(-channels)[rank]
        assert token.index == np.argsort(-tokens)[rank]
        assert channel.value == pytest.approx(channels[channel.index])
        assert token.value == pytest.approx(tokens[token.index])
    median = np.median(magnitude)
    assert found["median", 0].value == pytest.approx(median, rel=2e-3)
    assert found["max_to_median", 0].value == pytest.approx(500 / median, rel=2e-3)
    centred = direct - direct.mean()
    kurtosis = (centred**4).mean() / (centred**2).mean() ** 2
    assert found["kurtosis", 0].value == pytest.approx(kurtosis, rel=1e-9)
    for factor in (100, 1000):
        share = (tokens > factor * median).mean()
        assert found[f"tokens_above_{factor}x_median", 0].value == pytest.approx(share)


def test_the_kurtosis_of_normal_values_is_three():
    x = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    assert measured(x)["kurtosis", 0].value == pytest.approx(3, abs=0.1)


def test_without_values_there_are_no_statistics():
    statistics = ActivationStatistics.empty(8, torch.device("cpu"))
    statistics.add(torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64))
    assert statistics.summary(5) == ()


def test_zeros_have_no_ratio():
    found = measured(torch.zeros(4, 8))
    assert found["median", 0].value == 0
    assert math.isnan(found["max_to_median", 0].value)
    assert math.isnan(found["kurtosis", 0].value)


def test_no_more_ranks_than_there_are_channels():
    found = measured(torch.ones(2, 3), top=5)
    assert sum(name == "channel_max" for name, _ in found) == 3
    assert sum(name == "token_max" for name, _ in found) == 2
