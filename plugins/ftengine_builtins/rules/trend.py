"""A straight line through the losses of a run's steps, with its error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
import scipy

from ftengine.evaluation import CHANCE

FEW_STEPS = 10
"""With fewer steps, the training loss is too short to distinguish a trend from noise."""


@dataclass(frozen=True)
class Trend:
    """A straight line through the training losses, weighted by trained tokens.

    Args:
        first, last: values of the line at its ends.
        low, high: 95 % interval of their difference.
        losses: losses of the steps, without the part that the length of texts explains.
    """

    first: float
    last: float
    low: float
    high: float
    losses: list[float]

    @property
    def noise(self) -> float:
        """The variation of losses from step to step: a robust standard deviation of their logarithm."""
        falls = [abs(math.log(after / before)) for before, after in pairwise(self.losses) if min(before, after) > 0]
        return 1.4826 * median(falls) / math.sqrt(2) if falls else 0.0

    @property
    def most_fall(self) -> float:
        """The largest relative decrease of the loss inside the interval."""
        return -self.low / self.first if self.first > 0 else math.inf


def trend(steps: Sequence[Any]) -> Trend:
    """Fit a line to all losses of a run, of at least three steps, by least squares weighted by trained tokens.

    Long texts have lower losses a token than short ones, so from FEW_STEPS on, the logarithm of the tokens an example
    is fitted as well. The error allows for losses of different spread, and for a step that alone holds much of the
    tokens (HC3: MacKinnon & White 1985, doi:10.1016/0304-4076(85)90158-7).
    """
    loss = np.array([step.loss for step in steps])
    weight = np.array([max(1, step.trained_tokens) for step in steps], dtype=float)
    at = np.linspace(-0.5, 0.5, len(loss))  # so that the slope is the change over the run
    at = at - np.average(at, weights=weight)
    lengths = np.log(weight / [max(1, step.examples) for step in steps])
    lengths = lengths - np.average(lengths, weights=weight)
    columns = [np.ones(len(loss)), at, *([lengths] if len(loss) >= FEW_STEPS and lengths.any() else [])]
    x, y = np.stack(columns, 1) * np.sqrt(weight)[:, None], loss * np.sqrt(weight)
    inverse = np.linalg.pinv(x.T @ x)
    middle, slope, *by_length = inverse @ x.T @ y
    left = y - x @ [middle, slope, *by_length]
    own = np.minimum(((x @ inverse) * x).sum(1), 1 - 1e-6)  # leverage of each step
    scores = x * (left / (1 - own))[:, None]
    error = math.sqrt((inverse @ (scores.T @ scores) @ inverse)[1, 1])
    half = float(scipy.special.stdtrit(len(loss) - x.shape[1], 1 - CHANCE / 2)) * error
    line = middle + slope * at[0], middle + slope * at[-1], slope - half, slope + half
    return Trend(*map(float, line), (loss - sum(by_length) * lengths).tolist())
