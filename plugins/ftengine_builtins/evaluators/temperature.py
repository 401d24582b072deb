"""The temperature that a classifier's logits are to be divided by, found in one pass over a stream."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.special import softmax

LOWEST, HIGHEST, POINTS = 0.05, 20.0, 65
"""The temperatures that are looked at: a grid with equal ratios, 1.098 from one to the next."""
CHUNK = 2**20
"""Numbers that are held at once: 8 MiB."""


def fit_temperature(examples: Iterable[tuple[np.ndarray, int]]) -> float | None:
    """Return the temperature T that makes the mean negative log-likelihood of softmax(logits / T) least.

    Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks", arXiv:1706.04599, §4.2. The
    likelihood's first two derivatives by β = 1 / T are added up on a grid. It is convex in β: its slope is zero once,
    and a cubic between the two points around that place finds it.

    Args:
        examples: (logits of shape (classes,), id of the true class) of each; read once, as a stream.

    Returns:
        T, at least 0.05 and at most 20, or None where there are no examples.
    """
    grid = 1 / np.geomspace(LOWEST, HIGHEST, POINTS)[::-1]  # rising in β
    sums = np.zeros((2, POINTS))
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
    """Return the first and second derivative of the summed likelihood at each β of the grid, (2, points)."""
    logits = np.stack([row for row, _ in examples]).astype(np.float64)
    truth = logits[np.arange(len(examples)), [label for _, label in examples]]
    scaled = logits[:, None, :] * grid[:, None]
    p = softmax(scaled, axis=-1)
    mean = (p * logits[:, None, :]).sum(axis=-1)
    variance = (p * (logits[:, None, :] - mean[..., None]) ** 2).sum(axis=-1)
    return np.stack([(mean - truth[:, None]).sum(axis=0), variance.sum(axis=0)])


def _minimum(grid: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> float:
    """Return the β of the grid's range where the likelihood is least, from its derivatives on the grid."""
    from scipy.interpolate import CubicHermiteSpline
    from scipy.optimize import brentq

    if not curvature.any():  # all logits of an example are equal: any temperature is as good
        return 1.0
    rising = np.flatnonzero(slope >= 0)
    if not len(rising) or rising[0] == 0:
        return float(grid[rising[0] if len(rising) else -1])
    i = int(rising[0])
    spline = CubicHermiteSpline(grid[i - 1 : i + 1], slope[i - 1 : i + 1], curvature[i - 1 : i + 1])
    return float(brentq(spline, grid[i - 1], grid[i]))
