"""Checks of evaluators."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from ftengine import api
from ftengine.equivalence import differing_figures
from ftengine.errors import DataError
from ftengine.evaluation.table import Predictions
from ftengine.plugins.attribution import each
from ftengine.testing.checks import Checks, run_checks, skip
from ftengine.testing.values import require_named_code

ROWS, RESAMPLES, MOST_SECONDS = 240, 10, 60
"""Rows, resamples of them that are timed, and the most seconds for a thousand such resamples."""

ODD_VALUES: tuple[object, ...] = (None, "", "no such thing", -1.5, True, [], ["a", None], {"a": [1]})
"""Values that columns of a user's file may hold."""


def check_evaluator(
    make: Callable[[], api.Evaluator],
    predictions: Sequence[api.Prediction],
    labels: api.Labels | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an evaluator on some predictions.

    Args:
        make: returns a fresh evaluator.
        predictions: at least four predictions with the columns that the evaluator reads.
        labels: the task's labels.
        expected_failed_checks: names of checks that fail, with reasons.
    """
    run_checks(EvaluatorChecks(make, predictions, labels), expected_failed_checks)


def rows_of(evaluator: api.Evaluator, predictions: Sequence[api.Prediction]) -> api.Rows:
    """Return the columns that `score` gets in a run: the predictions' keys and the values of `keep`."""
    columns = [{**prediction, **evaluator.keep(prediction)} for prediction in predictions]
    rows = {name: column.copy() for name, column in Predictions.of(pa.Table.from_pylist(columns)).columns.items()}
    return {**rows, **evaluator.keep_together(rows, None)}


@dataclass
class EvaluatorChecks(Checks):
    """Checks of an evaluator on predictions of one kind."""

    make: Callable[[], api.Evaluator]
    predictions: Sequence[api.Prediction]
    labels: api.Labels | None

    def __post_init__(self) -> None:
        self._evaluator = self.make()
        self._fitted = False
        if api.overrides(self._evaluator, "set_labels"):
            self._evaluator.set_labels("a-task", self.labels)

    def _rows(self) -> api.Rows:
        rows = rows_of(self._evaluator, self.predictions)
        if isinstance(self._evaluator, api.FittedEvaluator) and not self._fitted:
            self._evaluator.fit(rows)
            self._fitted = True
        return rows

    def _weights(self, resamples: int) -> np.ndarray:
        return np.random.default_rng(0).poisson(1, (resamples, len(self.predictions))).astype(np.float64)

    def _scores(self, rows: api.Rows, weights: Sequence[float] | np.ndarray) -> Mapping[str, float]:
        return self._evaluator.score(rows, np.asarray(weights, dtype=np.float64))

    def kept_columns_have_one_shape(self) -> None:
        columns = [self._evaluator.keep(prediction) for prediction in self.predictions]
        shapes = {tuple(sorted((name, np.shape(value)) for name, value in row.items())) for row in columns}
        assert len(shapes) == 1, f"examples keep different columns: {sorted(shapes)}"
        assert all(np.asarray(value).dtype.kind in "bif" for value in columns[0].values()), "a column is not of numbers"

    def scores_are_the_declared_metrics(self) -> None:
        scores = self._scores(self._rows(), [1] * len(self.predictions))
        scored, declared = sorted(scores), sorted(self._evaluator.metrics)
        assert scored == declared, f"scores {scored}, metrics {declared}"
        numbers = all(isinstance(value, (int, float, np.number)) for value in scores.values())
        assert numbers, f"not all are numbers: {dict(scores)}"
        if isinstance(self._evaluator, api.ModelEvaluator):
            return  # what it asks models is none of these predictions
        drawn = [scores, *(self._scores(self._rows(), weights) for weights in self._weights(8))]
        finite = any(np.isfinite(float(value)) for drawn_scores in drawn for value in drawn_scores.values())
        assert finite, f"no metric is finite for any of {len(drawn)} weightings of the predictions"

    def proportions_lie_between_0_and_1(self) -> None:
        rows, metrics = self._rows(), self._evaluator.metrics
        for weights in (np.ones(len(self.predictions)), *self._weights(8)):
            scores = self._scores(rows, weights).items()
            shares = {name: value for name, value in scores if name in metrics and metrics[name].proportion}
            wrong = [f"{name} {value:.6g}" for name, value in shares.items() if value < -1e-9 or value > 1 + 1e-9]
            assert not wrong, f"proportions must be from 0 to 1: {', '.join(wrong)}"

    def scores_are_pure(self) -> None:
        before = copy.deepcopy(list(self.predictions))
        rows, weights = self._rows(), self._weights(1)[0]
        untouched = copy.deepcopy(rows)
        first = self._scores(rows, weights)
        for other in self._weights(3)[1:]:  # other figures between two equal calls, which must leave no trace
            self._scores(rows, other)
        _same(
            first, self._scores(rows, weights), "a second call gives other scores: do not store anything between calls"
        )
        assert list(self.predictions) == before, "a prediction was changed in place"
        numbers = {name: column for name, column in untouched.items() if column.dtype.kind in "bif"}
        changed = [name for name, column in numbers.items() if not np.array_equal(rows[name], column, equal_nan=True)]
        assert not changed, f"the column {changed[0]!r} was changed in place: copy it first"

    def keeping_is_pure(self) -> None:
        first = [self._evaluator.keep(prediction) for prediction in self.predictions]
        again = [self._evaluator.keep(prediction) for prediction in self.predictions[::-1]][::-1]
        same = all(
            first_row.keys() == other.keys()
            and all(np.array_equal(first_row[key], other[key], equal_nan=True) for key in first_row)
            for first_row, other in zip(first, again, strict=True)
        )
        assert same, "the result of keep depends on earlier examples: do not store anything between calls of keep"

    def the_order_of_rows_does_not_matter(self) -> None:
        rows, weights = self._rows(), self._weights(1)[0]
        order = np.random.default_rng(0).permutation(len(weights))
        shuffled = {name: column[order] for name, column in rows.items()}
        fault = "the same rows in another order have other scores"
        _same(self._scores(rows, weights), self._scores(shuffled, weights[order]), fault)

    def a_weight_of_two_is_the_row_twice(self) -> None:
        n, rows = len(self.predictions), self._rows()
        for i in range(n):
            weights = [2.0 if j == i else 1.0 for j in range(n)]
            twice = {name: np.concatenate([column, column[i : i + 1]]) for name, column in rows.items()}
            fault = f"row {i} with a weight of 2 is not the same as twice in the rows"
            _same(self._scores(rows, weights), self._scores(twice, [1] * (n + 1)), fault)

    def a_weight_of_zero_is_no_row(self) -> None:
        n, rows = len(self.predictions), self._rows()
        for i in range(n):
            weights = [0.0 if j == i else 1.0 for j in range(n)]
            without = {name: np.delete(column, i, axis=0) for name, column in rows.items()}
            fault = f"row {i} with a weight of 0 counts"
            _same(self._scores(rows, weights), self._scores(without, [1] * (n - 1)), fault)

    def resamples_equal_scores(self) -> None:
        evaluator = self._evaluator
        if not api.overrides(evaluator, "score_resamples"):
            skip("its resamples are scored one after another")
        rows, weights = self._rows(), self._weights(8)
        together = evaluator.score_resamples(rows, weights)
        needed = {name for name, metric in evaluator.metrics.items() if metric.interval}
        assert needed <= set(together) <= set(evaluator.metrics), f"resamples of {sorted(together)}"
        for i, row_weights in enumerate(weights):
            single = self._scores(rows, row_weights)
            drawn = {name: float(values[i]) for name, values in together.items()}
            _same(
                drawn,
                {name: single[name] for name in drawn},
                f"resample {i} has other scores together with others than alone",
            )

    def resamples_are_quick(self) -> None:
        many = -(-ROWS // len(self.predictions))
        rows = {name: np.concatenate([column] * many) for name, column in self._rows().items()}
        weights = np.random.default_rng(0).poisson(1, (RESAMPLES, many * len(self.predictions))).astype(np.float64)
        separately = partial(map, partial(self._scores, rows), weights)
        together = partial(self._evaluator.score_resamples, rows, weights)
        seconds = min(
            _seconds(together if api.overrides(self._evaluator, "score_resamples") else separately) for _ in "abc"
        )
        thousand = 1_000 / RESAMPLES * seconds
        assert thousand < MOST_SECONDS, (
            f"a thousand resamples of {len(weights[0])} rows take {thousand:.0f} s, and a run has them of each model "
            "and slice: compute what does not depend on the weights in `keep`, or write `score_resamples`"
        )

    def slices_have_the_same_scores(self) -> None:
        if not api.overrides(self._evaluator, "for_slices"):
            skip("slices are measured as the whole")
        rows, weights = self._rows(), self._weights(1)[0]
        quick, full = self._evaluator.for_slices(), self._scores(rows, weights)
        assert next(iter(quick.metrics)) == next(iter(self._evaluator.metrics)), "the first metric is another one"
        scores = quick.score(rows, weights)
        assert scores.keys() == quick.metrics.keys() <= full.keys(), f"scores {sorted(scores)}"
        _same(scores, {name: full[name] for name in scores}, "scores of slices are others")

    def what_cannot_be_read_is_a_data_error(self) -> None:
        if not api.overrides(self._evaluator, "check_row"):
            skip("it checks no rows before a model loads")
        for value in ODD_VALUES:
            try:
                self._evaluator.check_row(dict.fromkeys(self._evaluator.columns, value))
            except DataError:
                continue
            except Exception as error:
                raise AssertionError(
                    f"check_row raises {type(error).__name__}: {error}, where {sorted(self._evaluator.columns)} hold "
                    f"{value!r}: raise DataError for values that cannot be read"
                ) from error

    def what_runs_beside_plugins_is_named(self) -> None:
        if not isinstance(self._evaluator, api.CodeEvaluator):
            skip("it runs no code beside its own")
        require_named_code(self._evaluator.runs_code())
        missing = [str(file) for file in self._evaluator.code_files() if not Path(file).is_file()]
        assert not missing, f"code_files names {missing[0]!r}, which is not there"

    def example_scores_are_one_a_row(self) -> None:
        if not api.overrides(self._evaluator, "score_examples"):
            skip("it scores no single examples")
        scores, shape = self._evaluator.score_examples(self._rows()), (len(self.predictions),)
        assert np.shape(scores.score) == np.shape(scores.right) == shape, "not one score for each row"
        assert all(value in (0, 1) for value in scores.right[~np.isnan(scores.right)]), "right is 0, 1 or nan"
        if (sure := scores.wrong_confidence) is not None:
            assert np.shape(sure) == shape, "not one wrong_confidence for each row"
            assert all(0 <= confidence <= 1 for confidence in sure[~np.isnan(sure)]), (
                "wrong_confidence is 0 to 1, or nan"
            )

    def what_intervals_rest_on_names_metrics(self) -> None:
        evaluator, rows, weights = self._evaluator, self._rows(), self._weights(3)
        bases: list[tuple[Mapping[str, Any], tuple[int, ...]]] = []
        if isinstance(evaluator, api.IntervalEvaluator):
            bases = [
                (evaluator.trials(rows), ()),
                (evaluator.proportions(rows, weights), (3,)),
                (evaluator.example_weights(rows), (len(self.predictions),)),
            ]
        if not any(values for values, _ in bases):
            skip("it says of no metric what its interval rests on")
        for values, shape in bases:
            assert values.keys() <= evaluator.metrics.keys(), f"{sorted(values)} are not all metrics"
            assert all(np.shape(value) == shape for value in values.values()), f"values are not of shape {shape}"

    def details_are_displays_and_json(self) -> None:
        if not api.overrides(self._evaluator, "details"):
            skip("it shows no details")
        details = self._evaluator.details(self._rows(), self._estimate)
        for detail in each(self._evaluator, "details", details, (tuple, *get_args(api.Display))):
            if isinstance(detail, tuple):
                name, fact = detail
                assert isinstance(name, str), f"the fact {fact!r} has no text as name"
                json.dumps(fact, allow_nan=False)
                baseline = api.Baseline.of({name: fact})
                unknown = set() if baseline is None else baseline.figures.keys() - self._evaluator.metrics.keys()
                assert not unknown, f"the baseline has figures of {sorted(unknown)}, which are not metrics"

    def a_baseline_reaches_its_figures(self) -> None:
        evaluator, rows = self._evaluator, self._rows()
        if not isinstance(evaluator, api.IntervalEvaluator) or not api.overrides(evaluator, "baseline_resamples"):
            skip("it measures no baseline")
        baseline = api.Baseline.of(
            dict(detail for detail in evaluator.details(rows, self._estimate) if isinstance(detail, tuple))
        )
        resamples = evaluator.baseline_resamples(rows, np.ones((1, len(self.predictions))))
        assert all(values.shape == (1,) for values in resamples.values()), "not one value for each resample"
        assert baseline is not None, "a baseline is measured, but `details` has none"
        plain = {name: float(values[0]) for name, values in resamples.items()}
        unknown = plain.keys() - baseline.figures.keys()
        assert not unknown, f"the baseline has no figures of {sorted(unknown)}"
        _same(plain, {name: baseline.figures[name] for name in plain}, "its figures differ from the baseline's")

    def _estimate(
        self, values: Callable[[np.ndarray], np.ndarray], trials: Sequence[float] | None = None
    ) -> list[api.Estimate]:
        plain, resampled = values(np.ones((1, len(self.predictions)))), values(self._weights(3))
        assert plain.shape[1:] == resampled.shape[1:] == (len(plain[0]),), "values have the shape (B, k)"
        assert trials is None or len(trials) == len(plain[0]), "trials and values must have the same number"
        return [api.Estimate(float(value), None, None, len(self.predictions)) for value in plain[0]]


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    result = run()
    if isinstance(result, Iterator):
        list(result)
    return time.perf_counter() - began


def _same(expected: Mapping[str, float], other: Mapping[str, float], fault: str) -> None:
    wrong = differing_figures(expected, other)
    assert not wrong, f"{fault}: {wrong}"
