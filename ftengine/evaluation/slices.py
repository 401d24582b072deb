"""Slices: held-out examples divided by a column's values, and tests of whether one is worse than the others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftengine.api import Difference, Evaluator, ExampleScores, Rows
from ftengine.data.rows import DataRows
from ftengine.errors import RecipeError, column_names, did_you_mean
from ftengine.evaluation.chance import holm
from ftengine.evaluation.differences import Gap, compare, gap_between
from ftengine.evaluation.examples import exact_test
from ftengine.evaluation.figures import ResampledFigure, estimates, measure
from ftengine.evaluation.intervals import CONFIDENCE
from ftengine.evaluation.table import equal
from ftengine.evaluation.weights import Weights
from ftengine.run.evaluation_result import USUAL, Slice, SlicedColumn
from ftengine.text import FEW_GROUPS

MOST_VALUES = 50
"""Values of a column that become slices, the most frequent ones; the examples of all others are counted together."""

MISSING = "(missing)"
LONGEST_VALUE = 100

Question = tuple[str, int]
"""A column and the number of a slice."""


def require_column(rows: DataRows, column: str) -> None:
    """Raise RecipeError, listing the columns, if rows lack a column for slices."""
    if column not in rows.columns:
        raise RecipeError(
            f"evaluation.slices: {rows.source} has no column {column!r} (columns: {column_names(rows.columns)})."
            + did_you_mean(column, rows.columns)
        )


def as_text(value: Any, longest: int | None = LONGEST_VALUE) -> str:
    """Return a value as text."""
    if value is None or value == "":
        return MISSING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str, sort_keys=True)
    return text if longest is None or len(text) <= longest else text[: longest - 1] + "…"


def is_small(part: Weights, small: int) -> bool:
    """Return whether a slice is too small to be tested: fewer than `small` distinct examples, or too few groups.

    Groups count as the equivalent number of equal size. If each example is its own group, only `small` decides.
    """
    return part.examples < small or (part.grouped and part.worth() < FEW_GROUPS)


@dataclass(frozen=True)
class Side:
    """One model on the sliced examples: n rows as the evaluator reads them, and their scores."""

    rows: Rows
    scores: ExampleScores | None = None


def slice_reports(
    columns: Mapping[str, np.ndarray],
    evaluator: Evaluator,
    base: Side,
    tuned: Side,
    weights: Weights,
    small: int,
) -> dict[str, SlicedColumn]:
    """Return the slices of each column for evaluation.json.

    Each slice's gap is its figure minus that of all other examples. p-values, of gaps and of differences, are adjusted
    by Holm's method for all slices of all columns that are large enough to be judged. The gaps' intervals hold for all
    slices of a column at once (Bonferroni).
    Slices are ordered by the near end of that interval, the worst first; those without an interval come last, by size.
    The first one is reported as the worst, unless it holds nearly all examples.
    Base and tuned are compared within a slice by McNemar's exact test where the metric is the share of right answers.

    Args:
        columns: (n,) values of each column, as texts.
        evaluator: measures the slices; gaps are of its first metric that has a direction.
        base, tuned: the two models on the same examples.
        weights: of these examples.
        small: number of distinct examples below which a slice is small and not tested; with groups, also if it has
            fewer than `FEW_GROUPS` (`is_small`).
    """
    quick = evaluator.for_slices()
    sides = {"base": base, "tuned": tuned}
    divided = [_Divided(name, values, quick, sides, weights, small) for name, values in columns.items()]
    gaps = holm({column.question(i): gap.p for column in divided for i, gap in column.gaps.items()})
    tests = holm({(column.column, i): p for column in divided for i, p in column.tests().items()})
    return {column.column: column.report(gaps, tests) for column in divided}


class _Divided:
    """Examples divided by the values of a column; slices are numbered by their frequency."""

    def __init__(
        self,
        column: str,
        values: np.ndarray,
        evaluator: Evaluator,
        sides: Mapping[str, Side],
        weights: Weights,
        small: int,
    ) -> None:
        distinct, first, codes, counts = np.unique(
            values.astype(str), return_index=True, return_inverse=True, return_counts=True
        )
        order = sorted(range(len(distinct)), key=lambda i: (-counts[i], first[i]))[:MOST_VALUES]
        rank = np.full(len(distinct), -1)
        rank[order] = range(len(order))
        self.column, self.codes = column, rank[codes.ravel()]
        self.names = [as_text(str(distinct[i])) for i in order]
        self.left_out = int((self.codes < 0).sum())
        self.two = len(order) == 2 and not self.left_out
        directed = (name for name, metric in evaluator.metrics.items() if metric.higher_is_better is not None)
        self.metric = next(directed, None)
        self.higher_is_better = self.metric is not None and bool(evaluator.metrics[self.metric].higher_is_better)
        self._evaluator, self._sides, self._weights = evaluator, sides, weights
        every = range(len(order))
        parts = [weights.under(self.codes == i) for i in every]
        self.small = [is_small(part, small) for part in parts]
        self._figures = {side: [self._measured(side, self.codes == i) for i in every] for side in sides}
        self.differences = [self._compared(i) for i in every]
        defined = {i: gap for i in every if not self.small[i] and (gap := self._gap("tuned", i)) is not None}
        confidence = 1 - (1 - CONFIDENCE) / (1 if self.two else max(1, len(defined)))
        self.gaps = {i: gap.difference(confidence) for i, gap in defined.items()}

    def question(self, number: int) -> Question:
        """Return the question that a slice's gap answers; if there are only two slices, theirs is the same."""
        return self.column, 0 if self.two else number

    def tests(self) -> dict[int, float | None]:
        """Return the p-values of the slices' differences, without small slices."""
        tested = {i: by_metric[self.metric] for i, by_metric in enumerate(self.differences) if self.metric in by_metric}
        return {i: difference.p for i, difference in tested.items() if not self.small[i]}

    def report(self, gaps: Mapping[Question, float], tests: Mapping[Question, float]) -> SlicedColumn:
        """Return the column's part of evaluation.json, given adjusted p-values of gaps and differences."""
        adjusted = {i: replace(gap, p_adjusted=gaps.get(self.question(i))) for i, gap in self.gaps.items()}
        order = sorted(adjusted, key=self._near_end)
        rarer = (i for i in order if (self.codes == i).sum() < USUAL * len(self.codes))
        worst = next(rarer, order[0]) if len(self.names) > 1 and order else None
        order += [i for i in range(len(self.names)) if i not in adjusted]
        before = None if worst is None else self._gap("base", worst)
        return SlicedColumn(
            metric=self.metric,
            slices=tuple(self._slice(i, adjusted.get(i), tests.get((self.column, i))) for i in order),
            worst=None if worst is None else self.names[worst],
            base_gap=None if before is None else before.difference(),
            left_out=self.left_out,
        )

    def _slice(self, number: int, gap: Difference | None, p_adjusted: float | None) -> Slice:
        differences = dict(self.differences[number])
        if self.metric in differences:
            differences[self.metric] = replace(differences[self.metric], p_adjusted=p_adjusted)
        return Slice(
            value=self.names[number],
            examples=int((self.codes == number).sum()),
            small=self.small[number],
            base=estimates(self._figures["base"][number]),
            tuned=estimates(self._figures["tuned"][number]),
            difference=differences,
            gap=gap,
        )

    def _compared(self, number: int) -> dict[str, Difference]:
        inside, metric = self.codes == number, self.metric
        before, after = self._figures["base"][number], self._figures["tuned"][number]
        exact = {}
        if metric is not None:
            base, tuned = self._sides["base"].scores, self._sides["tuned"].scores
            exact = exact_test(base, tuned, self._weights, inside, {metric: before[metric]}, {metric: after[metric]})
        rows = ({name: column[inside] for name, column in self._sides[side].rows.items()} for side in ("base", "tuned"))
        return compare(before, after, exact, same=equal(*rows))

    def _gap(self, side: str, number: int) -> Gap | None:
        """Return the gap between a slice and all other examples; None if one side has no figure."""
        if self.metric is None:
            return None
        inside = self.codes == number
        others = self._figures[side][1 - number] if self.two else self._measured(side, ~inside)
        own = self._figures[side][number]
        return gap_between(others.get(self.metric), own.get(self.metric), overlap=self._weights.share(inside))

    def _measured(self, side: str, mask: np.ndarray) -> dict[str, ResampledFigure]:
        rows = {name: column[mask] for name, column in self._sides[side].rows.items()}
        return measure(self._evaluator, rows, self._weights.under(mask))

    def _near_end(self, number: int) -> tuple[bool, float]:
        """Return the sort key of a slice: the surest to be worse comes first, slices without an interval last."""
        gap = self.gaps[number]
        end = gap.high if self.higher_is_better else gap.low
        value = gap.value if end is None else end
        return end is None, value if self.higher_is_better else -value
