"""Deciding whether a served or exported model is the tuned model or its base, by outputs on the same examples."""

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

SURE = 2
"""A mean that is so many times as far off as noise explains is so whatever its standard error."""
TURNED = 5.0
"""Times the square of a log-probability's distance: by so much, in the mean over tokens, answers that rounding turns
around are behind the likeliest ones. It turns those around whose likeliest two are as near as that distance, and how
many these are grows with it; measured were 0.7 to 1.3 times the square (docs/serving.md)."""
EXACT = 0.005
"""A distance of log-probabilities that weights of 16 bits explain."""
FURTHER = 2
"""Where log-probabilities are known, answers are explained by so many times the distance of these."""

Decision = Literal["tuned", "base", "neither", "undecided"]


@dataclass(frozen=True)
class Likeness:
    """Mean distances of a model from the tuned model and from the base, and the decision between them.

    Args:
        decision: "tuned"; "base": significantly closer to the base; "neither": the mean distance from the tuned model
            significantly exceeds the noise, or that of single examples does; "undecided": the differences are not
            significant.
        from_tuned, from_base: mean distances.
        closer: from_base - from_tuned, with its interval and the p-value of no difference, paired by example.
        noise: the largest distance from the tuned model that is explained in the mean; of one example `ROW` times that.
        furthest: the largest distance from the tuned model; `far` are the examples beyond the explained distance, the
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


def turned(noise: float) -> float:
    """Return the mean gap to the likeliest tokens that an error of log-probabilities of this size causes in answers."""
    return TURNED * noise**2


def in_noise(
    log_probabilities: Sequence[float], behind: Sequence[float], noise: float, *, strict: bool = True
) -> list[float]:
    """Return the distance of answers from a model's, in units of what its rounding explains.

    It is the larger one of two distances: that of the log-probabilities, and by how much the answers differ.

    Args:
        log_probabilities: mean distance of the tokens' log-probabilities per answer; nan where unknown.
        behind: mean gap between the log-probabilities of the likeliest tokens and of the answer's tokens.
        noise: the largest distance of log-probabilities that rounding explains.
        strict: if log-probabilities are known, scale answers' differences by them and not by `noise`; units then depend
            on the model.
    """
    far = np.asarray(log_probabilities, dtype=np.float64)
    measured = far[~np.isnan(far)]
    nearer = max(EXACT, FURTHER * float(measured.mean())) if strict and len(measured) else noise
    return np.fmax(far / noise, np.asarray(behind, dtype=np.float64) / turned(min(noise, nearer))).tolist()


def likeness(from_tuned: Sequence[float], from_base: Sequence[float], noise: float, seed: int = 0) -> Likeness:
    """Decide by the distances of the examples from both models, paired by example; nan are left out."""
    tuned, base = np.asarray(from_tuned, dtype=np.float64), np.asarray(from_base, dtype=np.float64)
    off = np.where(np.isnan(tuned), 0.0, tuned)
    far = tuple(int(i) for i in np.argsort(-off, kind="stable") if off[i] > ROW * noise)
    measured = ~(np.isnan(tuned) | np.isnan(base))
    tuned, base = tuned[measured], base[measured]
    n, closer = len(tuned), base - tuned
    weights = Weights(np.arange(n), seed, RESAMPLES)
    resampled = weights.resample(lambda w: (w @ closer) / w.sum(axis=1))
    value, beyond = float(closer.mean()), float(tuned.mean()) - noise
    p = swap_test(closer, seed)
    sure = p is not None and p < LEVEL
    decision: Decision = "undecided"
    needed = None
    if sure and value < 0:
        decision = "base"
    elif far or not beyond <= noise * (SURE - 1) or _surely_positive(tuned - noise):
        decision = "neither"
    elif beyond > 0:
        needed = _needed(beyond, float(tuned.std(ddof=1)) / math.sqrt(n) if n > 1 else None, n)
    elif sure:
        decision = "tuned"
    else:
        needed = _needed(value, standard_error(resampled, n), n)
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


def _surely_positive(values: np.ndarray) -> bool:
    """Return whether the mean of values (n,) is above 0 by a one-sided t-test; of equal ones by their sign."""
    mean, n = float(values.mean()), len(values)
    error = float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return mean > float(scipy.special.stdtrit(n - 1, 1 - LEVEL)) * error if error > 0 else mean > 0


def _needed(value: float, error: float | None, n: int) -> int | None:
    """Return with how many examples a mean would be told from 0 in four of five samples; None where that is not known.

    (t₀.₉₇₅ + t₀.₈) standard errors, which shrink with the root of the number of examples.
    """
    if error is None or not value:
        return None
    t = scipy.special.stdtrit(n - 1, (1 + CONFIDENCE) / 2) + scipy.special.stdtrit(n - 1, POWER)
    return max(n + 1, LEAST, math.ceil(n * (float(t) * error / abs(value)) ** 2))
