"""Conformance checks for authors of plugins: what the engine relies on, each check with a name.

    from ftengine.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy, load_a_tiny_model, a_batch)

A check that a component is known to fail is named with its reason, `expected_failed_checks={"merge": "…"}`; it must
fail then, so that the list does not outlive its reasons. Whatever else fails is told at once, in one AssertionError.
"""

from ftengine.testing.augmenters import check_augmenter
from ftengine.testing.evaluators import check_evaluator, rows_of
from ftengine.testing.loaders import check_loader
from ftengine.testing.regularizers import check_regularizer
from ftengine.testing.strategies import check_strategy
from ftengine.testing.tasks import check_task

__all__ = [
    "check_augmenter",
    "check_evaluator",
    "check_loader",
    "check_regularizer",
    "check_strategy",
    "check_task",
    "rows_of",
]
