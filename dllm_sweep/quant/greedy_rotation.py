"""DuQuant's change of basis (arXiv 2406.01721): rotate blocks, permute channels, rotate again.

Channels are cut into blocks of b, which share one orthogonal matrix. It is found greedily: the
channel with the greatest value is swapped to the front, a rotation whose first row is constant
spreads it over its block, and that is repeated on the result; the steps that left the smallest
range are kept. The rotations are drawn at random, so several searches are made, and the best of
them counts. A zigzag permutation then deals the channels out to the blocks in the order of their
maxima, so that no block has all the large ones, and a second rotation follows.

The authors' code swaps by the row of the extreme value where its paper speaks of the channel; here
it is the channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm_sweep.quant.capture import counted
from dllm_sweep.quant.rotation import random_orthogonal
from dllm_sweep.quant.transforms import BlockRotation, Chain, InputTransform, Permutation


def fitting_block(channels: int, block_size: int) -> int:
    """Give the largest divisor of `channels` that is at most `block_size`."""
    return next(size for size in range(min(block_size, channels), 0, -1) if channels % size == 0)


def spreading_rotations(block_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Draw rotations whose first row is constant, so that they spread channel 0 evenly.

    Each is diag(1, Q) B with the reflection B that takes the first axis to the diagonal, and Q
    uniform among the orthogonal matrices.

    Args:
        block_size: Number b of channels.
        steps: How many.
        generator: On the CPU.

    Returns:
        (steps, b, b) float32.
    """
    base = _reflection_to_diagonal(block_size)
    rotations = base.repeat(steps, 1, 1)
    if block_size > 1:
        for rotation in rotations:
            rotation[1:] = random_orthogonal(block_size - 1, generator) @ base[1:]
    return rotations.float()


def greedy_rotation(x: Tensor, rotations: Sequence[Tensor] | Tensor) -> Tensor:
    """Find an orthogonal matrix that makes the range of block-rotated activations small.

    Args:
        x: (T, n), n a multiple of b.
        rotations: (steps, b, b), as `spreading_rotations` draws them, on the device of `x`.

    Returns:
        (b, b) float32: the product of the first steps, as many as leave the smallest range; the
        identity if none makes it smaller.
    """
    size = rotations[0].shape[-1]
    blocks = x.float().reshape(-1, size)
    matrix = torch.eye(size, dtype=torch.float64, device=x.device)
    best, least = matrix, _range(blocks)
    for rotation in rotations:
        channel = blocks.abs().amax(0).argmax()
        step = _swapped(rotation, channel)
        blocks = blocks @ step
        matrix = matrix @ step.double()
        spread = _range(blocks)
        best = torch.where(spread < least, matrix, best)
        least = torch.minimum(spread, least)
    return best.float()


def best_rotation(x: Tensor, searches: Tensor) -> Tensor:
    """Give the result (b, b) of the search that leaves the smallest range of (T, n).

    Args:
        x: (T, n), n a multiple of b.
        searches: (searches, steps, b, b), the rotations of each search.
    """
    found = [greedy_rotation(x, rotations) for rotations in searches]
    if len(found) == 1:
        return found[0]
    blocks = x.float().reshape(-1, searches.shape[-1])
    ranges = torch.stack([_range(blocks @ matrix) for matrix in found])
    return found[int(ranges.argmin())]


def zigzag(maxima: Tensor, block_size: int) -> Tensor:
    """Deal channels to blocks in snake order, the greatest first.

    Args:
        maxima: (n,), each channel's greatest absolute value.
        block_size: Divides n.

    Returns:
        (n,) int64, the channel at each place; within a block the maxima descend.
    """
    blocks = len(maxima) // block_size
    order = torch.argsort(maxima, descending=True, stable=True).reshape(block_size, blocks)
    order[1::2] = order[1::2].flip(1)
    return order.T.reshape(-1).contiguous()


def rotate_permute_rotate(x: Tensor, searches: Tensor, permutations: int = 1) -> InputTransform:
    """Find DuQuant's transform for activations (T, n): rotations around each permutation.

    Args:
        x: What a linear reads.
        searches: (searches, steps, b, b), on the device of `x`: what each search for a rotation
            goes through; b divides n.
        permutations: How many; another rotation follows each.
    """
    size = searches.shape[-1]
    parts: list[InputTransform] = [BlockRotation(best_rotation(x, searches))]
    if x.shape[-1] == size:  # a single block: there is nothing to deal out
        return parts[0]
    for _ in range(permutations):
        x = parts[-1](x)
        parts.append(Permutation(zigzag(x.abs().amax(0), size)))
        x = parts[-1](x)
        parts.append(BlockRotation(best_rotation(x, searches)))
    return Chain(parts)


def telling_tokens(x: Tensor, count: int) -> Tensor:
    """Choose `count` of the tokens (T, n): those with the greatest values, and evenly spaced ones.

    Outliers sit on few tokens, which a plain sample, or a mean over sequences, would lose.
    """
    if len(x) <= count:
        return x
    largest = x.abs().amax(1).topk(count // 2).indices.sort().values
    spaced = torch.arange(count - count // 2, device=x.device) * len(x) // (count - count // 2)
    return x[torch.cat((largest, spaced))]


class TellingTokens:
    """Keeps telling tokens of what a linear reads.

    Args:
        count: How many, at most.
        sequences: How many sequences there are: each gives a share, so that it does not matter how
            batches are cut.
    """

    def __init__(self, count: int, sequences: int) -> None:
        self.count, self.share = count, max(2, 2 * count // sequences)
        self.kept: list[Tensor] = []

    def add(self, x: Tensor, weights: Tensor | None) -> None:
        """Choose from each sequence of x (B, L, n); tokens of weight 0 in (B, L) do not exist."""
        for row, sequence in enumerate(x):
            tokens = counted(sequence, None if weights is None else weights[row])
            self.kept.append(telling_tokens(tokens, self.share))

    def tokens(self) -> Tensor:
        """Give those of all sequences, (T, n)."""
        return telling_tokens(torch.cat(self.kept), self.count)


class MeanTokens:
    """Averages what a linear reads over sequences, position by position, as the authors do.

    Args:
        count: Positions that are kept, at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.total = self.weight = torch.zeros(0, 0)

    def add(self, x: Tensor, weights: Tensor | None) -> None:
        """Add sequences x (B, L, n); a token counts as much as its weight in (B, L)."""
        counts = x.new_ones(x.shape[:2]) if weights is None else weights.to(x.device)
        total = (x * counts[..., None]).sum(0, dtype=torch.float64)
        weight = counts.sum(0, dtype=torch.float64)[:, None]
        self.total, self.weight = _added(self.total, total), _added(self.weight, weight)

    def tokens(self) -> Tensor:
        """Give the means (T, n) at the positions where anything counts."""
        present = self.weight[:, 0] > 0
        mean = (self.total[present] / self.weight[present]).float()
        return telling_tokens(mean, self.count)


def _added(first: Tensor, second: Tensor) -> Tensor:
    """Add (L, n) to (M, n), either of which may be the shorter or have no rows at all."""
    shorter, longer = sorted((first, second), key=len)
    if not len(shorter):
        return longer
    longer = longer.clone()
    longer[: len(shorter)] += shorter
    return longer


def _reflection_to_diagonal(size: int) -> Tensor:
    axis = torch.zeros(size, dtype=torch.float64)
    axis[0] = 1
    normal = axis - torch.full_like(axis, size**-0.5)
    length = normal.square().sum().clamp(min=torch.finfo(torch.float64).tiny)
    return torch.eye(size, dtype=torch.float64) - 2 * torch.outer(normal, normal) / length


def _swapped(rotation: Tensor, channel: Tensor) -> Tensor:
    """Exchange the roles of channel 0 and `channel`: rows and columns."""
    order = torch.arange(len(rotation), device=rotation.device)
    order[channel], order[0] = 0, channel
    return rotation[order][:, order]


def _range(x: Tensor) -> Tensor:
    return x.max() - x.min()
