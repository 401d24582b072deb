"""Conformance checks for authors of plugins. Each check has a name and tests something that the engine relies on.

    from ftengine.testing import check_component

    def test_my_strategy():
        check_component(MyStrategy)

This runs the checks of the class's kind on small models, data and records that are shipped (`fixtures`, `predictions`,
`audited_rows`, `stored_runs`). The functions of one kind, such as `check_strategy`, take your own model or rows.

Name a check that a component is known to fail with the reason, `expected_failed_checks={"merge": "…"}`. It must then
fail, so that the list does not outlive its reasons. All other failures are reported together in one AssertionError.
"""

from ftengine.testing.audited import audited_rows
from ftengine.testing.augmenters import check_augmenter
from ftengine.testing.callbacks import check_callback
from ftengine.testing.checks import CheckResult, Outcome
from ftengine.testing.components import check_component, check_results
from ftengine.testing.evaluators import check_evaluator, rows_of
from ftengine.testing.exporters import check_exporter
from ftengine.testing.fast_paths import check_fast_path, training_context
from ftengine.testing.findings import check_audit, check_rule
from ftengine.testing.loaders import check_loader
from ftengine.testing.optimizers import check_optimizer, check_schedule
from ftengine.testing.predicted import Predicted, predictions
from ftengine.testing.readers import check_reader
from ftengine.testing.regularizers import check_regularizer
from ftengine.testing.runs import stored_runs
from ftengine.testing.samples import Fixture, fixture, fixture_of, fixtures
from ftengine.testing.strategies import check_strategy
from ftengine.testing.tasks import check_task

__all__ = [
    "CheckResult",
    "Fixture",
    "Outcome",
    "Predicted",
    "audited_rows",
    "check_audit",
    "check_augmenter",
    "check_callback",
    "check_component",
    "check_evaluator",
    "check_exporter",
    "check_fast_path",
    "check_loader",
    "check_optimizer",
    "check_reader",
    "check_regularizer",
    "check_results",
    "check_rule",
    "check_schedule",
    "check_strategy",
    "check_task",
    "fixture",
    "fixture_of",
    "fixtures",
    "predictions",
    "rows_of",
    "stored_runs",
    "training_context",
]
