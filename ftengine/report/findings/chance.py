"""What is beyond chance where several measures are looked at together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np
from scipy.special import stdtr, stdtrit

from ftengine.evaluation.intervals import CONFIDENCE
from ftengine.evaluation.significance import bootstrap_p, holm
from ftengine.report.files import RunFiles

CHANCE = round(1 - CONFIDENCE, 12)
"""Adjusted p-values above it are taken for chance."""

RESAMPLES = 1000
"""Of runs whose recipe does not say."""

Key = TypeVar("Key", bound=Hashable)


def got_worse(
    files: RunFiles, differences: Mapping[Key, Mapping[str, Any]], examples: Mapping[Key, int] | None = None
) -> dict[Key, float]:
    """Return which of several differences are to the worse beyond chance, with their p-values.

    The p-values are adjusted over all of the differences (Holm 1979).

    Args:
        differences: {value, low, high, p, better}; those without a p are not judged.
        examples: how many are behind each difference whose p is a bootstrap's; None where none is.
    """
    known = {key: one for key, one in differences.items() if one.get("p") is not None}
    resamples = (files.recipe.get("evaluation") or {}).get("resamples") or RESAMPLES
    p_values = [_resolved(one, resamples, (examples or {}).get(key)) for key, one in known.items()]
    adjusted = zip(known.items(), holm(p_values), strict=True)
    # Never below the p that stands in the tables.
    return {key: max(p, one["p"]) for (key, one), p in adjusted if one.get("better") is False and p <= CHANCE}


def _resolved(difference: Mapping[str, Any], resamples: int, n: int | None) -> float:
    """Return a p-value that may be multiplied.

    A bootstrap's ends at about 2/(B + 1), so that among 25 measures nothing could ever be beyond chance. Where it is
    there, Student's t says how much less it is: with the standard error that the interval stands for.
    """
    p, low, high = difference["p"], difference.get("low"), difference.get("high")
    if n is None or n < 2 or low is None or high is None or not high > low:
        return p
    if p > bootstrap_p(np.ones(resamples), n):
        return p
    error = (high - low) / 2 / stdtrit(n - 1, (1 + CONFIDENCE) / 2)
    return min(p, 2 * float(stdtr(n - 1, -abs(difference["value"]) / error)))
