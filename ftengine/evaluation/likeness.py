"""Which of two models a third one is, by what it makes of the same examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy

from ftengine.evaluation.intervals import CONFIDENCE, Interval, percentile_interval, standard_error
from ftengine.evaluation.significance import POWER, swap_test
from ftengine.evaluation.weights import Weights

RESAMPLES = 1000
LEVEL = 0.05
"""Of the test that an artifact is closer to one model than to the other."""
LEAST = 6
"""Examples with which it can decide at all: where all are closer to one model, p is 2^(1 - n)."""
ROW = 10
"""A single example may be so many times as far off as the mean may: rounding turns around a token here and there."""

Decision = Literal["tuned", "base", "neither", "undecided"]


@dataclass(frozen=True)
class Likeness:
    """How far a model is from the tuned one and from the base, in the mean over examples.

    Args:
        decision: "tuned", "base" (closer to it, beyond chance), "neither" (the mean or some examples are further from
            the tuned one than noise explains), or "undecided": within the noise of the tuned one, and not closer to it
            than to the base beyond chance.
        from_tuned, from_base: mean distances.
        closer: from_base - from_tuned, with its interval and the p-value of no difference, paired by example.
        noise: the largest distance from the tuned model that is explained in the mean; of one example `ROW` times that.
        furthest: the largest distance from the tuned model; `far` are the examples beyond what is explained, the
            furthest first.
        needed: examples with which the test would decide in four of five samples; None where that is not known.
    """

    decision: Decision
    from_tuned: float
    from_base: float
    closer: float
    interval: Interval
    p: float | None
    noise: float
    furthest: float
    far: tuple[int, ...]
    examples: int
    needed: int | None


def likeness(from_tuned: Sequence[float], from_base: Sequence[float], noise: float, seed: int = 0) -> Likeness:
    """Judge by the distances of each example, paired; those that are nan are left out."""
    tuned, base = np.asarray(from_tuned, dtype=np.float64), np.asarray(from_base, dtype=np.float64)
    off = np.where(np.isnan(tuned), 0.0, tuned)
    far = tuple(int(i) for i in np.argsort(-off, kind="stable") if off[i] > ROW * noise)
    known = ~(np.isnan(tuned) | np.isnan(base))
    tuned, base = tuned[known], base[known]
    n, closer = len(tuned), base - tuned
    weights = Weights(np.arange(n), seed, RESAMPLES)
    resampled = weights.resample(lambda w: (w @ closer) / w.sum(axis=1))
    value = float(closer.mean())
    p = swap_test(closer, seed)
    sure = p is not None and p < LEVEL
    decision: Decision = "undecided"
    if sure and value < 0:
        decision = "base"
    elif far or not float(tuned.mean()) <= noise:
        decision = "neither"
    elif sure:
        decision = "tuned"
    error = standard_error(resampled, n)
    needed = None
    if decision == "undecided" and error is not None and value:
        # (t₀.₉₇₅ + t₀.₈) standard errors, which shrink with the root of the number of examples
        t = scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) + scipy.special.stdtrit(n - 1, POWER)
        factor = float(t) * error / abs(value)
        needed = max(n + 1, LEAST, math.ceil(n * factor**2))
    interval = percentile_interval(resampled, n)
    return Likeness(
        decision,
        float(tuned.mean()),
        float(base.mean()),
        value,
        interval,
        p,
        noise,
        float(off.max()),
        far,
        n,
        needed,
    )
