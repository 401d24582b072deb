"""Slices: the held-out examples divided by a column's values, and whether one is served worse than the others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftengine.api import Evaluator, ExampleScores, MeasuresSlices, Rows
from ftengine.data.read import Rows as DataRows
from ftengine.errors import RecipeError, did_you_mean
from ftengine.evaluation.differences import Gap, compare, gap_between
from ftengine.evaluation.examples import exact_p
from ftengine.evaluation.figures import Figure, estimates, measure, to_json
from ftengine.evaluation.intervals import CONFIDENCE
from ftengine.evaluation.significance import holm
from ftengine.evaluation.weights import Weights

MOST_VALUES = 50
"""Values of a column that become slices, the most frequent ones; the examples of all others are counted together."""

USUAL = 0.9
"""Share of the examples from which a slice is what is usual: it is not called worst, the others are the exception."""

MISSING = "(missing)"
LONGEST_VALUE = 100


def require_column(rows: DataRows, column: str) -> None:
    """Refuse to divide rows by a column that they lack.

    Raises:
        RecipeError: names the columns that there are.
    """
    if column not in rows.columns:
        raise RecipeError(
            f"evaluation.slices: {rows.source} has no column {column!r} (columns: {', '.join(rows.columns)})."
            + did_you_mean(column, rows.columns)
        )


def as_text(value: Any, longest: int | None = LONGEST_VALUE) -> str:
    """Return a value as a reader knows it."""
    if value is None or value == "":
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


@dataclass(frozen=True)
class Side:
    """One model on the examples that are divided.

    Args:
        rows: n rows, as the evaluator sees them.
        scores: of its examples; None where the evaluator does not judge single ones.
    """

    rows: Rows
    scores: ExampleScores | None = None


def slice_report(
    values: np.ndarray,
    evaluator: Evaluator,
    base: Side,
    tuned: Side,
    weights: Weights,
    groups: np.ndarray,
    small: int,
) -> dict[str, Any]:
    """Return what evaluation.json says of one column.

    Each slice's gap is its figure minus that of all other examples. p-values are adjusted by Holm's method for all
    slices that are large enough to be judged, and the gaps' intervals hold for all of them at once (Bonferroni).
    Slices stand in the order of how surely they are behind, by the near end of that interval; those without one come
    last, by their size. The first is the worst, but for one that holds nearly all examples.
    Base and tuned are compared within a slice by McNemar's exact test where the metric is the share of right answers.

    Args:
        values: (n,) the column, as texts.
        evaluator: what measures; its first metric that has a direction is the one that gaps are of.
        base, tuned: of the same examples.
        weights: of these examples.
        groups: (n,) equal for duplicates.
        small: distinct examples below which a slice is called small, and not compared with the others.
    """
    quick = evaluator.for_slices() if isinstance(evaluator, MeasuresSlices) else evaluator
    divided = _Divided(values, quick, {"base": base, "tuned": tuned}, weights, groups)
    directed = (name for name, one in quick.metrics.items() if one.higher_is_better is not None)
    metric = next(directed, None)
    slices = [divided.slice(i, small, metric) for i in range(len(divided.names))]
    report: dict[str, Any] = {"metric": metric, "slices": slices, "worst": None, "gap": None, "base_gap": None}
    report["left_out"] = int((divided.codes < 0).sum())
    if metric is None:
        return report
    _adjust([one["difference"][metric] for one in slices if metric in one["difference"] and not one["small"]])
    # Where two slices are all that there is, the gap of one is that of the other: one question, not two.
    same = len(slices) == 2 and not report["left_out"]
    gaps = {i: divided.gap("tuned", i, metric, two=same) for i, one in enumerate(slices) if not one["small"]}
    known = {i: gap for i, gap in gaps.items() if gap is not None}
    confidence = 1 - (1 - CONFIDENCE) / (1 if same else max(1, len(known)))
    for i, gap in known.items():
        slices[i]["gap"] = gap.to_json(confidence)
    _adjust([slices[i]["gap"] for i in known], once=same)
    if len(slices) > 1 and known:
        higher = bool(quick.metrics[metric].higher_is_better)
        order = sorted(known, key=lambda i: _near_end(slices[i]["gap"], higher_is_better=higher))
        report["slices"] = [slices[i] for i in [*order, *(i for i in range(len(slices)) if i not in known)]]
        worst = next((i for i in order if slices[i]["examples"] < USUAL * len(values)), order[0])
        report["worst"] = slices[worst]["value"]
        report["gap"] = slices[worst]["gap"] | {"p": slices[worst]["gap"]["p_adjusted"]}
        before = divided.gap("base", worst, metric, two=same)
        report["base_gap"] = None if before is None else before.to_json(CONFIDENCE)
    return report


class _Divided:
    """Examples divided by the values of a column; slices are numbered by their frequency."""

    def __init__(
        self, values: np.ndarray, evaluator: Evaluator, sides: Mapping[str, Side], weights: Weights, groups: np.ndarray
    ) -> None:
        found, first, codes, counts = np.unique(
            values.astype(str), return_index=True, return_inverse=True, return_counts=True
        )
        order = sorted(range(len(found)), key=lambda i: (-counts[i], first[i]))[:MOST_VALUES]
        rank = np.full(len(found), -1)
        rank[order] = range(len(order))
        self.codes = rank[codes.ravel()]
        self.names = [as_text(str(found[i])) for i in order]
        self._evaluator, self._sides, self._weights, self._groups = evaluator, sides, weights, groups
        self._figures = {side: [self._measured(side, self.codes == i) for i in range(len(order))] for side in sides}

    def slice(self, number: int, small: int, metric: str | None) -> dict[str, Any]:
        """Return what evaluation.json says of one slice, without its gap."""
        inside = self.codes == number
        before, after = self._figures["base"][number], self._figures["tuned"][number]
        exact = {}
        if metric is not None:
            base, tuned = self._sides["base"].scores, self._sides["tuned"].scores
            exact = exact_p(base, tuned, self._groups, inside, {metric: before[metric]}, {metric: after[metric]})
        differences = compare(before, after, exact, among_many=True)
        return {
            "value": self.names[number],
            "examples": int(inside.sum()),
            "small": len(np.unique(self._groups[inside])) < small,
            "base": estimates(before),
            "tuned": estimates(after),
            "difference": {name: to_json(one) for name, one in differences.items()},
            "gap": None,
        }

    def gap(self, side: str, number: int, metric: str, *, two: bool) -> Gap | None:
        """Return how far a slice lies from all other examples; None where one side has no figure.

        Args:
            side: "base" or "tuned".
            number: the slice.
            metric: which figure.
            two: whether the others are the other slice.
        """
        inside = self.codes == number
        others = self._figures[side][1 - number] if two else self._measured(side, ~inside)
        shared = np.intersect1d(self._groups[inside], self._groups[~inside])
        return gap_between(others.get(metric), self._figures[side][number].get(metric), overlap=len(shared) > 0)

    def _measured(self, side: str, mask: np.ndarray) -> dict[str, Figure]:
        rows = {name: column[mask] for name, column in self._sides[side].rows.items()}
        return measure(self._evaluator, rows, self._weights.under(mask))


def _near_end(gap: Mapping[str, Any], *, higher_is_better: bool) -> tuple[bool, float]:
    """Return a key that is least for the slice most surely behind; slices without an interval come last."""
    end = gap["high"] if higher_is_better else gap["low"]
    value = gap["value"] if end is None else end
    return end is None, value if higher_is_better else -value


def _adjust(tests: Sequence[dict[str, Any]], *, once: bool = False) -> None:
    """Put Holm's adjusted p-value beside each p; `once` where all are one test, which needs no adjusting."""
    known = [test for test in tests if test["p"] is not None and not once]
    for test in tests:
        test["p_adjusted"] = test["p"] if once else None
    for test, adjusted in zip(known, holm([test["p"] for test in known]), strict=True):
        test["p_adjusted"] = adjusted


def adjust_over_columns(columns: Mapping[str, dict[str, Any]]) -> None:
    """Adjust the p-values of several columns' reports over all slices of all of them, in place.

    Whoever looks at several columns asks more questions than at one; this p is the one that is shown and judged by.
    The gap of a column of two slices, which is the same seen from either, counts once.

    Args:
        columns: what `slice_report` says of each.
    """
    gaps, differences = [], []
    for column in columns.values():
        tested = [one["gap"] for one in column["slices"] if one["gap"] is not None and one["gap"]["p"] is not None]
        same = len(column["slices"]) == 2 and not column["left_out"]
        gaps += [tested] if same and tested else [[gap] for gap in tested]
        differences += list(_differences(column))
    for group, p in zip(gaps, holm([group[0]["p"] for group in gaps]), strict=True):
        for gap in group:
            gap["p_adjusted"] = p
    _adjust(differences)
    for column in columns.values():
        worst = next((one for one in column["slices"] if one["value"] == column["worst"]), None)
        if worst is not None and column["gap"] is not None:
            column["gap"]["p"] = worst["gap"]["p_adjusted"]


def _differences(column: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the differences of a column's slices that are tested."""
    for one in column["slices"]:
        if column["metric"] in one["difference"] and not one["small"]:
            yield one["difference"][column["metric"]]
