"""Two evaluations on the same examples: what differs, how surely, and what could have been seen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ftengine.api import Difference, Metric
from ftengine.evaluation.bootstrap import Accumulator, Figure
from ftengine.evaluation.proportions import difference_interval
from ftengine.evaluation.resampling import CONFIDENCE, detectable, p_value, percentile_interval, t_p_value
from ftengine.evaluation.sums import Sums


def compare(
    base: Accumulator | Sums, tuned: Accumulator | Sums, exact: Mapping[str, float] | None = None
) -> dict[str, Difference]:
    """Return tuned minus base for every metric.

    Both saw the same examples, so each resample weighs them equally in both, and what makes an example hard
    for both cancels.

    Args:
        base, tuned: on the same examples.
        exact: by metric the p-value of an exact test, where there is one.

    Raises:
        ValueError: the two were not made alike, or saw different examples.
    """
    if isinstance(base, Sums) or isinstance(tuned, Sums):
        return _compare_sums(base, tuned, exact)
    base.require_alike(tuned)
    if base.examples != tuned.examples or not np.array_equal(base.weight_totals(), tuned.weight_totals()):
        raise ValueError(
            f"base ({base.examples} examples) and tuned ({tuned.examples}) were not evaluated on the same examples."
        )
    before, after = base.figures(), tuned.figures()
    return {
        name: _difference(before[name], after[name], base.examples, (exact or {}).get(name))
        for name in before
        if name in after
    }


def compare_among_many(
    base: Accumulator, tuned: Accumulator, exact: Mapping[str, float] | None = None
) -> dict[str, Difference]:
    """Return what `compare` does, with p-values that can be adjusted for many comparisons.

    The bootstrap's p-value ends at about 2/(B + 1), which Holm's method multiplies by the number of comparisons, so
    that with twenty of them nothing could ever be beyond chance. Student's t has no such end.

    Args:
        base, tuned: on the same examples.
        exact: by metric the p-value of an exact test, where there is one.

    Raises:
        ValueError: as `compare`.
    """
    differences, before, after = compare(base, tuned), base.figures(), tuned.figures()
    for name, difference in differences.items():
        resampled = _subtract(after[name].resampled, before[name].resampled, base.examples)
        size = min(before[name].size, after[name].size)
        p = (exact or {}).get(name, t_p_value(difference.value, resampled, size))
        better = _better(difference.low, difference.high, p, after[name].higher_is_better)
        differences[name] = replace(difference, p=p, better=better)
    return differences


def _compare_sums(
    base: Accumulator | Sums, tuned: Accumulator | Sums, exact: Mapping[str, float] | None
) -> dict[str, Difference]:
    if not isinstance(base, Sums) or not isinstance(tuned, Sums) or base.parts.keys() != tuned.parts.keys():
        raise ValueError("base and tuned were measured in different passes.")
    return {
        name: difference
        for one, part in base.parts.items()
        for name, difference in compare(part, tuned.parts[one], exact).items()
    }


def _difference(base: Figure, tuned: Figure, n: int, exact: float | None) -> Difference:
    value = float(_subtract(np.asarray(tuned.value), np.asarray(base.value), n))
    if math.isnan(value):
        return Difference(value, None, None, None, None)
    resampled, size = _subtract(tuned.resampled, base.resampled, n), min(base.size, tuned.size)
    if base.scored:
        low, high = difference_interval(
            base.value, tuned.value, base.interval, tuned.interval, base.resampled, tuned.resampled
        )
    else:
        low, high = percentile_interval(resampled, size)
        if size > 1 and not resampled.any():  # the two say the same of every example
            low, high = 0.0, 0.0
    p = p_value(resampled, size) if exact is None else exact
    better = _better(low, high, p, tuned.higher_is_better)
    return Difference(value, low, high, p, better, detectable(resampled, size))


def _better(low: float | None, high: float | None, p: float | None, higher_is_better: bool | None) -> bool | None:
    """Return the verdict; both the interval and the p-value must exclude zero."""
    if low is None or high is None or p is None or higher_is_better is None:
        return None
    if low <= 0 <= high or p > 1 - CONFIDENCE:
        return None
    return (low > 0) == higher_is_better


def _subtract(tuned: np.ndarray, base: np.ndarray, n: int) -> np.ndarray:
    """Return the difference, with 0 for what the order of adding n numbers explains.

    Two models that say the same may be added up in different orders; rounding must not decide which is better.
    """
    with np.errstate(invalid="ignore"):
        difference = tuned - base
        rounding = n * np.finfo(np.float64).eps * np.maximum(np.abs(tuned), np.abs(base))
        return np.where(np.abs(difference) <= rounding, 0.0, difference)


def to_json(figure: Metric | Difference) -> dict[str, Any]:
    """Return a figure as evaluation.json holds it: {value, low, high, n} or {value, low, high, p, better, detectable}.

    JSON has no nan and no infinity; they become null.
    """
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(figure).items()
    }
