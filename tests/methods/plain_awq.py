"""AWQ's two searches written down once more, in numpy and loops, as its paper and the authors' code
define them: a group's range need not contain zero, its zero point is clamped to the codes, and an
input that is always zero takes part in the centring of the scales."""

import numpy as np

LEAST_SCALE, LEAST_RANGE = 1e-4, 1e-5


def rounded(weight, bits, group_size):
    """Round a weight (m, n), each output and group by itself."""
    values = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    steps = 2**bits - 1
    low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
    scale = np.maximum(high - low, LEAST_RANGE) / steps
    zero = np.clip(-np.round(low / scale), 0, steps)
    codes = np.clip(np.round(values / scale) + zero, 0, steps)
    return ((codes - zero) * scale).reshape(weight.shape)


def scales_at(magnitude, ratio):
    """Give the centred scales (n,)."""
    scales = np.maximum(magnitude**ratio, LEAST_SCALE)
    return scales / np.sqrt(scales.max() * scales.min())


def search_scales(weights, magnitude, loss, *, bits, group_size, points=20):
    """Try the ratios; `loss` takes rounded weights. Give the scales, their loss, that of r = 0."""
    tried = []
    for point in range(points):
        scales = scales_at(magnitude, point / points)
        changed = [rounded(weight * scales, bits, group_size) / scales for weight in weights]
        tried.append((loss(changed), scales))
    least = min(range(points), key=lambda point: tried[point][0])
    return tried[least][1], tried[least][0], tried[0][0]


def search_clip(weight, x, *, bits, group_size, steps=20, max_shrink=0.5):
    """Give the clipped weight (m, n) for inputs x (T, n)."""
    size = group_size or weight.shape[1]
    clipped = weight.copy()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], size):
            group = slice(start, start + size)
            clipped[row, group] = _clipped_group(
                weight[row, group], x[:, group], bits, steps, max_shrink
            )
    return clipped


def _clipped_group(values, x, bits, steps, max_shrink):
    best, least = values, np.inf
    for step in range(int(max_shrink * steps)):
        bound = np.abs(values).max() * (1 - step / steps)
        candidate = np.clip(values, -bound, bound)
        error = np.mean((x @ (rounded(candidate[None], bits, None)[0] - values)) ** 2)
        if error < least:
            best, least = candidate, error
    return best
