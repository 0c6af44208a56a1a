import torch

from dllm_sweep.calibration.masking import MODES


def draw(mode, sequences=4000, length=64, seed=0):
    return MODES[mode](sequences, length, torch.Generator().manual_seed(seed))


def test_none_hides_nothing():
    assert not draw("none").any()


def test_uniform_hides_half_on_average_and_every_share_alike():
    masked = draw("uniform")
    share = masked.double().mean(1)
    assert abs(share.mean() - 0.5) < 0.02
    # A uniform rate has the variance 1/12; choosing the tokens adds E[t (1 - t)] / length.
    assert abs(share.var() - (1 / 12 + 1 / 6 / 64)) < 0.005
    counts = torch.histc(share.float(), bins=10, min=0, max=1)
    assert counts.min() > 0.8 * 400
    assert counts.max() < 1.2 * 400


def test_uniform_prefers_no_position():
    by_position = draw("uniform").double().mean(0)
    assert (by_position - 0.5).abs().max() < 0.05


def test_tokens_of_one_sequence_share_a_rate():
    masked = draw("uniform").double()
    left, right = masked[:, :32].mean(1), masked[:, 32:].mean(1)
    assert torch.corrcoef(torch.stack((left, right)))[0, 1] > 0.9
