"""Checks of evaluators."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ftengine.api import EvaluationContext, Evaluator, Prediction
from ftengine.testing.checks import Checks, run_checks


def check_evaluator(
    make: Callable[[], Evaluator],
    context: EvaluationContext,
    predictions: Sequence[Prediction],
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check an evaluator on some predictions.

    Args:
        make: returns a fresh evaluator.
        context: what it is bound to.
        predictions: four at least, such as the task makes.
        expected_failed_checks: names of checks that fail, with reasons.

    Raises:
        AssertionError: as `check_strategy`.
    """
    run_checks(_evaluator_checks(make, context, predictions), expected_failed_checks)


def _evaluator_checks(
    make: Callable[[], Evaluator], context: EvaluationContext, predictions: Sequence[Prediction]
) -> Checks:
    import numpy as np

    evaluator = make()
    evaluator.bind(context)

    def rows(some: Sequence[Prediction]) -> np.ndarray:
        return np.stack([np.asarray(evaluator.statistics(one), dtype=np.float64) for one in some])

    def figures(sums: np.ndarray) -> dict[str, Any]:
        with np.errstate(all="ignore"):
            return {name: np.asarray(value) for name, value in evaluator.metrics(sums).items()}

    def statistics_have_one_width() -> None:
        widths = {len(evaluator.statistics(one)) for one in predictions}
        assert len(widths) == 1, f"examples give {sorted(widths)} numbers"

    def statistics_are_pure() -> None:
        before = copy.deepcopy(list(predictions))
        assert np.array_equal(rows(predictions), rows(predictions), equal_nan=True), "a second call gives other numbers"
        assert list(predictions) == before, "a prediction was changed in place"

    def metrics_take_any_leading_shape() -> None:
        sums = rows(predictions)
        together = figures(sums)
        for i, row in enumerate(sums):
            for name, value in figures(row).items():
                same = np.allclose(together[name][i], value, equal_nan=True)
                assert same, f"{name} of row {i} alone is {value}, among others {together[name][i]}"

    def merged_sums_are_the_whole() -> None:
        whole = rows(predictions).sum(axis=0)
        half = len(predictions) // 2
        merged = rows(predictions[half:]).sum(axis=0) + rows(predictions[:half]).sum(axis=0)
        one, other = figures(whole), figures(merged)
        assert all(np.allclose(one[name], other[name], equal_nan=True) for name in one), "halves do not add up"

    def directions_name_every_metric() -> None:
        found, named = set(figures(rows(predictions).sum(axis=0))), set(evaluator.higher_is_better)
        assert found == named, f"metrics {sorted(found)}, higher_is_better {sorted(named)}"

    def details_are_json() -> None:
        counts: dict[Any, int] = {}
        for one in predictions:
            for key in evaluator.counts(one):
                counts[key] = counts.get(key, 0) + 1
        with np.errstate(all="ignore"):
            details = evaluator.details(rows(predictions).sum(axis=0), counts)
        json.dumps(dict(details), allow_nan=False)

    yield "statistics_have_one_width", statistics_have_one_width
    yield "statistics_are_pure", statistics_are_pure
    yield "metrics_take_any_leading_shape", metrics_take_any_leading_shape
    yield "merged_sums_are_the_whole", merged_sums_are_the_whole
    yield "directions_name_every_metric", directions_name_every_metric
    yield "details_are_json", details_are_json
