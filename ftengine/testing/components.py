"""One door for tools: whatever a class is, the checks of its kind on what ftengine.testing ships."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

from pydantic import ValidationError

from ftengine.api import Component
from ftengine.errors import PluginError
from ftengine.plugins.offered import ALLOWED_TO_FAIL, described, fault
from ftengine.plugins.option_errors import explain
from ftengine.plugins.registry import KINDS
from ftengine.testing import suites
from ftengine.testing.checks import CheckResult, require_passed, results_of

Suite = Callable[[Callable[[], Any]], Iterator[tuple[str, Callable[[], None]]]]

SUITES: Mapping[str, Suite] = {
    "loader": suites.of_loader,
    "task": suites.of_task,
    "strategy": suites.of_strategy,
    "augmenter": suites.of_augmenter,
    "regularizer": suites.of_regularizer,
    "reader": suites.of_reader,
    "optimizer": suites.of_optimizer,
    "schedule": suites.of_schedule,
    "evaluator": suites.of_evaluator,
    "audit": suites.of_audit,
    "rule": suites.of_rule,
    "callback": suites.of_callback,
}
"""For each kind what yields its checks, given what builds a component."""

COMPLETE, OPTIONS = "it_is_complete", "its_options_are_given"


def check_results(
    cls: type[Component],
    *,
    options: Mapping[str, Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[CheckResult]:
    """Check a component class on the models, data and records that are shipped; nothing is downloaded.

    Args:
        cls: a subclass of a kind's base class.
        options: of the component; by default its own. Where some have to be given and are not, all is skipped.
        expected_failed_checks: names of checks that fail, with reasons; one that does not fail is a failure.

    Returns:
        A result for each check of the kind, and a skipped one, by its name, for each model or data that the component
        refuses with a reason of its own.

    Raises:
        PluginError: the class is of no kind.
    """
    kind, base = kind_of(cls)
    wrong = fault(cls, base)
    if wrong:
        return [CheckResult(COMPLETE, "failed", wrong)]
    try:
        config = cls.Config.model_validate(dict(options or {}))
    except ValidationError as error:
        said = explain(error, cls.Config, "options.", f" of {kind} {cls.name!r}")
        intended = options is None and all(item["type"] in ALLOWED_TO_FAIL for item in error.errors())
        return [CheckResult(OPTIONS, "skipped" if intended else "failed", said)]
    checks = [(COMPLETE, partial(_require_documented, cls))]
    return results_of(chain(checks, SUITES[kind](partial(cls, config))), expected_failed_checks)


def check_component(
    cls: type[Component],
    *,
    options: Mapping[str, Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a component class as `check_results` does.

    Raises:
        AssertionError: names every check that failed, or passed though it was expected to fail.
        PluginError: the class is of no kind.
    """
    require_passed(check_results(cls, options=options, expected_failed_checks=expected_failed_checks))


def kind_of(cls: Any) -> tuple[str, type[Component]]:
    """Return a component class's kind and the base class of it; PluginError where it has none."""
    for kind, (base, _) in KINDS.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return kind, base
    bases = ", ".join(base.__name__ for base, _ in KINDS.values())
    raise PluginError(f"{described(cls)} is no component: it derives from none of {bases} (ftengine.api).")


def _require_documented(cls: type[Component]) -> None:
    own = inspect.getdoc(cls) if cls.__doc__ else ""
    assert own, "it has no docstring, whose first line is what `ftengine plugins list` shows of it"
    silent: Sequence[str] = [name for name, field in cls.Config.model_fields.items() if not field.description]
    assert not silent, f"its option {silent[0]!r} has no description: Field(…, description=…)"
