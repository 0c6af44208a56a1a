"""DuQuant's ranges against those of the authors' procedure, over random layers with outliers."""

import pytest
import torch

from dllm_sweep.quant.greedy_rotation import rotate_permute_rotate, spreading_rotations, zigzag
from tests.methods import plain_duquant

SIZE, STEPS, SEARCHES, LAYERS = 32, 48, 4, 8


def layer(seed, *, channels, tokens):
    """Activations (T, n) of unequal channels, with outlier channels and massive single values."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(96, 128, generator=generator)
    x *= torch.randn(128, generator=generator).mul(0.5).exp()
    x[:, torch.randperm(128, generator=generator)[:channels]] *= 30
    for _ in range(tokens):
        place = (int(torch.randint(size, (1,), generator=generator)) for size in x.shape)
        x[tuple(place)] = 800 * (torch.rand(1, generator=generator) - 0.5)
    return x


def span(x):
    return (x.max() - x.min()).item()


def test_the_plain_version_is_orthogonal_and_deals_out_as_ours():
    matrix = plain_duquant.constant_first_row(24)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(24, dtype=torch.float64))
    torch.testing.assert_close(matrix[0].abs(), torch.full((24,), 24**-0.5, dtype=torch.float64))
    maxima = torch.rand(48, generator=torch.Generator().manual_seed(1))
    assert plain_duquant.snake(maxima, 12) == zigzag(maxima, 12).tolist()


@pytest.mark.parametrize(
    ("outliers", "mean", "worst"),
    [
        # Both search at random: single layers differ by some percent in either direction.
        ({"channels": 0, "tokens": 0}, 1.03, 1.08),
        ({"channels": 4, "tokens": 0}, 1.0, 1.12),
        ({"channels": 0, "tokens": 3}, 0.9, 1.05),
        ({"channels": 4, "tokens": 3}, 0.95, 1.07),
    ],
)
def test_ranges_fall_at_least_as_far_as_with_the_authors_procedure(outliers, mean, worst):
    ratios = []
    for seed in range(LAYERS):
        x = layer(seed, **outliers)
        drawn = spreading_rotations(SIZE, STEPS, torch.Generator().manual_seed(seed))
        searches = drawn.unflatten(0, (SEARCHES, STEPS // SEARCHES))
        ours = span(rotate_permute_rotate(x, searches)(x))
        ratios.append(ours / span(plain_duquant.transformed(x, SIZE, STEPS, seed)))
    assert sum(ratios) / LAYERS <= mean
    assert max(ratios) <= worst
