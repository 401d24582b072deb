"""The temperature that a classifier's logits are to be divided by, found in one pass over a stream."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import logsumexp

LOWEST, HIGHEST, POINTS = 0.05, 20.0, 65
"""The temperatures that are looked at: a grid with equal ratios, 1.098 from one to the next."""
CHUNK = 2**20
"""Numbers that are held at once: 8 MiB."""


def fit_temperature(examples: Iterable[tuple[np.ndarray, int]]) -> float | None:
    """Return the temperature T that makes the mean negative log-likelihood of softmax(logits / T) least.

    Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks", arXiv:1706.04599, §4.2. The
    likelihood and its first two derivatives by β = 1 / T are added up on a grid; it is convex in β, so a Newton
    step from the best point of the grid comes to the minimum, which is never further than the neighbours.

    Args:
        examples: (logits of shape (classes,), id of the true class) of each; read once, as a stream.

    Returns:
        T, at least 0.05 and at most 20, or None where there are no examples.
    """
    grid = 1 / np.geomspace(LOWEST, HIGHEST, POINTS)[::-1]  # rising in β
    sums = np.zeros((3, POINTS))
    waiting: list[tuple[np.ndarray, int]] = []
    seen = 0
    for example in examples:
        waiting.append(example)
        seen += 1
        if len(waiting) * POINTS * len(example[0]) >= CHUNK:
            sums += _derivatives(waiting, grid)
            waiting = []
    if waiting:
        sums += _derivatives(waiting, grid)
    return 1 / _minimum(grid, *sums) if seen else None


def _derivatives(examples: list[tuple[np.ndarray, int]], grid: np.ndarray) -> np.ndarray:
    """Return the summed likelihood at each β of the grid, and its first and second derivative; (3, points)."""
    logits = np.stack([row for row, _ in examples]).astype(np.float64)
    truth = logits[np.arange(len(examples)), [label for _, label in examples]]
    scaled = logits[:, None, :] * grid[:, None]
    total = logsumexp(scaled, axis=-1)
    p = np.exp(scaled - total[..., None])
    mean = (p * logits[:, None, :]).sum(axis=-1)
    variance = (p * (logits[:, None, :] - mean[..., None]) ** 2).sum(axis=-1)
    nll = total - grid * truth[:, None]
    return np.stack([nll.sum(axis=0), (mean - truth[:, None]).sum(axis=0), variance.sum(axis=0)])


def _minimum(grid: np.ndarray, nll: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> float:
    best = int(nll.argmin())
    step = -slope[best] / curvature[best] if curvature[best] > 0 else 0.0
    return float(np.clip(grid[best] + step, grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]))
