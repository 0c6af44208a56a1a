"""The DuQuant authors' search for rotations, written plainly from its description.

Unlike ours it swaps by the row in which the extreme value stands, not by its channel.
"""

import torch


def constant_first_row(size):
    """An orthogonal matrix whose first row is constant, from Givens rotations."""
    matrix = torch.eye(size, dtype=torch.float64)
    for channel in range(1, size):
        # Moves 1 / size of the first axis's square into one more channel, evenly.
        sine = torch.tensor(1 / (size - channel + 1), dtype=torch.float64).sqrt()
        cosine = (1 - sine**2).sqrt()
        givens = torch.eye(size, dtype=torch.float64)
        givens[0, 0], givens[0, channel] = cosine, sine
        givens[channel, 0], givens[channel, channel] = -sine, cosine
        matrix = matrix @ givens
    return matrix


def greedy_rotation(x, size, steps, generator):
    """The product of the steps that left the smallest range, (size, size) float64."""
    rows = x.double().reshape(-1, size)
    base, matrix = constant_first_row(size), torch.eye(size, dtype=torch.float64)
    best, least = matrix, torch.inf
    for _ in range(steps):
        extended = torch.eye(size, dtype=torch.float64)
        gauss = torch.randn(size - 1, size - 1, generator=generator, dtype=torch.float64)
        extended[1:, 1:] = torch.linalg.qr(gauss).Q
        place = int(rows.abs().argmax()) // size % size
        order = list(range(size))
        order[0], order[place] = place, 0
        step = (extended @ base)[order][:, order]
        rows, matrix = rows @ step, matrix @ step
        spread = float(rows.max() - rows.min())
        if spread < least:
            best, least = matrix, spread
    return best


def snake(maxima, size):
    """Channels by descending maximum, dealt to the blocks there and back again."""
    blocks = [[] for _ in range(len(maxima) // size)]
    there = [*range(len(blocks)), *reversed(range(len(blocks)))]
    for turn, channel in enumerate(maxima.argsort(descending=True, stable=True).tolist()):
        blocks[there[turn % len(there)]].append(channel)
    return [channel for block in blocks for channel in block]


def transformed(x, size, steps, seed):
    """Rotate, permute and rotate activations (T, n)."""
    generator = torch.Generator().manual_seed(seed)
    for second in (False, True):
        rotation = greedy_rotation(x, size, steps, generator)
        x = (x.double().reshape(-1, size) @ rotation).reshape(x.shape)
        if not second:
            x = x[:, snake(x.abs().amax(0), size)]
    return x
