"""Checks of any component class, on the shipped models, data and records that suit it."""

from __future__ import annotations

import copy
import inspect
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from ftengine import api
from ftengine.data.augmentation import require_suitable
from ftengine.errors import InputError, PluginError
from ftengine.model import save_model
from ftengine.plugins.class_validation import ALLOWED_TO_FAIL, described, fault
from ftengine.plugins.option_errors import explain
from ftengine.plugins.registry import AUTO, KINDS, Registry
from ftengine.testing.asking import AskingChecks
from ftengine.testing.audited import audited_rows, clean, messy
from ftengine.testing.augmenters import AugmenterChecks
from ftengine.testing.callbacks import CallbackChecks
from ftengine.testing.checks import Check, CheckResult, not_suited, require_any, require_passed, results_of
from ftengine.testing.evaluators import EvaluatorChecks
from ftengine.testing.evaluators import rows_of as rows_of_predictions
from ftengine.testing.exporters import ExporterChecks, exported_run
from ftengine.testing.fast_paths import FastPathChecks, variants
from ftengine.testing.findings import AuditChecks, RuleChecks
from ftengine.testing.loaders import AcceptingChecks, LoaderChecks
from ftengine.testing.optimizers import OptimizerChecks, ScheduleChecks
from ftengine.testing.options import READ, with_options_checked
from ftengine.testing.predicted import predictions
from ftengine.testing.readers import ReaderChecks, long_files, sample_sources, under_suffix
from ftengine.testing.regularizers import RegularizerChecks
from ftengine.testing.runs import stored_runs
from ftengine.testing.samples import Fixture, fixture, fixtures, registry, rows_of
from ftengine.testing.strategies import StrategyChecks
from ftengine.testing.tasks import TaskChecks
from ftengine.testing.values import equal, explained
from ftengine.training.regularizing import Attached

Models = Sequence[Fixture]

COMPLETE, OPTIONS, SUITED = "it_is_complete", "its_options_are_given", "it_suits_a_model"
OF_ANY = (
    *(COMPLETE, OPTIONS, SUITED, READ, "rows_suit_it", "predictions_suit_it"),
    *("other_rows_are_data_errors", "what_it_cannot_measure_is_refused"),
)
"""Names of checks that are not methods of a `Checks` class."""


def check_results(
    cls: type[api.Component],
    *,
    options: Mapping[str, Any] | None = None,
    models: Sequence[Fixture] | None = None,
    strategy: str | Mapping[str, Any] | None = None,
    only: Collection[str] = (),
    expected_failed_checks: Mapping[str, str] | None = None,
) -> list[CheckResult]:
    """Check a component class on the models, data and records that are shipped; nothing is downloaded.

    Args:
        cls: a subclass of a kind's base class.
        options: the component's options; by default their defaults. If a required one is missing, no check applies.
        models: models to use instead of the shipped ones; `fixture_of` makes one of a folder.
        strategy: the strategy, as in a recipe, that prepares the models for a regularizer.
        only: names of the checks to run; by default all.
        expected_failed_checks: names of checks that fail, with reasons; one that does not fail is a failure.

    Returns:
        A result for each check of the kind, and one with the outcome "does not apply" for each model or data that the
            component refuses.

    Raises:
        PluginError: the class is not a component.
        InputError: the strategy does not exist, or does not accept the options.
    """
    kind, base = kind_of(cls)
    wrong = fault(cls, base)
    if wrong:
        return [CheckResult(COMPLETE, "failed", wrong)]
    try:
        config = cls.Config.model_validate(dict(options or {}))
    except ValidationError as error:
        reason = explain(error, cls.Config, "options.", f" of {kind} {cls.name!r}")
        intended = options is None and all(item["type"] in ALLOWED_TO_FAIL for item in error.errors())
        advice = f" Pass `options`, or --set {cls.name}.OPTION=VALUE to `ftengine plugins check`." if intended else ""
        return [CheckResult(OPTIONS, "does not apply" if intended else "failed", reason + advice)]
    complete = (COMPLETE, partial(_require_documented, cls))
    chosen = fixtures() if models is None else models
    if strategy is not None:
        prepares = registry().factory("strategy", strategy, "strategy")
        chosen = [replace(model, strategy=prepares) for model in chosen]
    checks = with_options_checked(kind, cls.Config, SUITES[kind](partial(cls, config), chosen))
    # The other checks show whether options are read.
    results = results_of(chain([complete], checks), expected_failed_checks, () if READ in only else only)
    return [result for result in results if not only or result.check in only]


def check_component(
    cls: type[api.Component],
    *,
    options: Mapping[str, Any] | None = None,
    models: Sequence[Fixture] | None = None,
    strategy: str | Mapping[str, Any] | None = None,
    expected_failed_checks: Mapping[str, str] | None = None,
) -> None:
    """Check a component class as `check_results` does.

    Raises:
        AssertionError: names every check that failed, or passed though it was expected to fail; or it refuses every
            model, so that nothing was checked.
        PluginError, InputError: as `check_results`.
    """
    results = check_results(
        cls, options=options, models=models, strategy=strategy, expected_failed_checks=expected_failed_checks
    )
    require_passed(results)
    for result in results:
        assert result.check != SUITED, f"nothing was checked: {result.reason}"


def kind_of(cls: Any) -> tuple[str, type[api.Component]]:
    """Return a component class's kind and the kind's base class (PluginError: it has no kind)."""
    for kind, (base, _) in KINDS.items():
        if isinstance(cls, type) and issubclass(cls, base):
            return kind, base
    bases = ", ".join(base.__name__ for base, _ in KINDS.values())
    raise PluginError(f"{described(cls)} is not a component: it derives from none of {bases} (ftengine.api).")


def _require_documented(cls: type[api.Component]) -> None:
    own = inspect.getdoc(cls) if cls.__doc__ else ""
    assert own, "it has no docstring; `ftengine plugins list` shows its first line"
    silent: Sequence[str] = [name for name, field in cls.Config.model_fields.items() if not field.description]
    assert not silent, f"its option {silent[0]!r} has no description: Field(…, description=…)"


def _of_strategy(make: Callable[[], api.Strategy], models: Models) -> Iterator[Check]:
    return _on_models(
        models,
        lambda model: make().prepare(model.load()),
        lambda model: StrategyChecks(make, model.load, model.batch, on=model.name),
    )


def _of_regularizer(make: Callable[[], api.Regularizer], models: Models) -> Iterator[Check]:
    """Yield a regularizer's checks on each model that it attaches to; all parameters train."""
    return _on_models(
        models,
        lambda model: Attached([make()], model.load_trainable(), model.task),
        lambda model: RegularizerChecks(make, model.task, model.load_trainable, model.batch, on=model.name),
    )


def _of_fast_path(make: Callable[[], api.FastPath], models: Models) -> Iterator[Check]:
    """Yield a fast path's checks on each model, however it trains."""
    usual = Registry().usual("strategy", {"name": AUTO}, "strategy")
    for model in models:
        for how, load in variants(model.load_trainable, lambda loaded: usual().prepare(loaded)):
            yield from FastPathChecks(make, model.task, load, model.batch, on=f"{model.name}{how}")


def _of_augmenter(make: Callable[[], api.Augmenter], models: Models) -> Iterator[Check]:
    """Yield an augmenter's checks on the rows of each task that it suits; it must change some row of at least one."""

    def suits(model: Fixture) -> None:
        augmenter = make()
        require_suitable(augmenter, model.task)
        if api.overrides(augmenter, "set_processor"):
            augmenter.set_processor(model.processor)

    changes = []
    for name, check in _on_models(
        models, suits, lambda model: AugmenterChecks(make, model.task, model.rows, model.processor, on=model.name)
    ):
        if name == "something_changes":
            changes.append(check)
        else:
            yield name, check
    if changes:
        yield "something_changes", partial(require_any, changes)


def _of_task(make: Callable[[], api.Task], models: Models) -> Iterator[Check]:
    """Yield a task's checks on rows of each shape that it takes, with a model where its head is shipped."""
    head, modality = make().head, make().modality
    fitting = next((model for model in models if model.head == head), None)
    reader = fitting or next((model for model in models if model.task.modality == modality), None)
    if reader is None:
        yield (
            "rows_suit_it",
            partial(not_suited, f"no rows of modality {modality!r} are shipped; use check_task with yours"),
        )
        return
    refused, suited, computed = [], 0, list[tuple[set[str], Any]]()
    for rows in rows_of(modality):
        shape, columns = ", ".join(rows[0]), set(rows[0])
        try:
            task = make()
            task.labels = task.learn_labels({"train": copy.deepcopy(list(rows))})
            features = [task.encode(copy.deepcopy(row), reader.processor) for row in rows]
        # What a task makes of rows of another shape is checked below.
        except (Exception, SystemExit) as error:
            refused.append((shape, rows, error))
            continue
        suited += 1
        # What is computed of rows that differ in columns which it does not read is the same again.
        again = any(columns >= fewer and equal(features, same) for fewer, same in computed)
        computed.append((columns, features))
        load = None if fitting is None or again else fitting.load
        yield from TaskChecks(make, reader.processor, rows, load, on=f"rows of {shape}")
    for refusal in refused:
        yield "other_rows_are_data_errors", partial(_require_data_error, make, *refusal)
    if not suited:
        refusals = " ".join(dict.fromkeys(str(reason) for _, _, reason in refused))
        why = f"none of the shipped rows suit it; call check_task with rows of your own ({refusals})"
        yield "rows_suit_it", partial(not_suited, why)


def _of_evaluator(make: Callable[[], Any], models: Models) -> Iterator[Check]:
    """Yield an evaluator's checks on predictions that have its columns, and on models if it has its own questions."""
    if isinstance(make(), api.ModelEvaluator):
        yield from _on_models(
            models,
            lambda model: make().benchmarks(model.task),
            lambda model: AskingChecks(make, model.task, model.load, on=model.name),
        )
    suited, refused = 0, []
    for predicted in predictions():
        evaluator = make()
        columns = evaluator.columns
        if not evaluator.reads <= predicted.keys | columns:
            continue
        try:
            if api.overrides(evaluator, "set_labels"):
                evaluator.set_labels("a-task", predicted.labels)
        except InputError as error:
            refused.append((predicted.name, partial(not_suited, str(error))))
            continue
        suited += 1
        rows = [{**dict.fromkeys(columns), **prediction} for prediction in predicted.predictions]
        failure = _failure(evaluator, rows)
        yield "what_it_cannot_measure_is_refused", partial(_require_measured, failure, predicted.name)
        if failure is None:
            yield from EvaluatorChecks(make, rows, predicted.labels, on=predicted.name)
    yield from refused
    if not suited:
        keys = sorted(make().reads)
        why = f"no shipped predictions have {keys}; use check_evaluator with predictions that do"
        yield "predictions_suit_it", partial(not_suited, why)


def _failure(evaluator: api.Evaluator, predictions: Sequence[api.Prediction]) -> BaseException | None:
    """Return the error that an evaluator raises for predictions; None if it measures them."""
    try:
        rows = rows_of_predictions(evaluator, predictions)
        if isinstance(evaluator, api.FittedEvaluator):
            evaluator.fit(rows)
        evaluator.score(rows, np.ones(len(predictions)))
    # Whatever it raises, a run would end there.
    except (Exception, SystemExit) as error:
        return error
    return None


def _require_measured(error: BaseException | None, on: str) -> None:
    assert error is None, (
        f"on {on}: {type(error).__name__}: {error}. If it cannot measure a kind of labels, raise RecipeError in "
        "set_labels(task, labels), before training begins"
    )


def _of_loader(make: Callable[[], api.ModelLoader]) -> Iterator[Check]:
    """Yield a loader's checks on a small transformers folder, where it accepts that; else those of `accepts`."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = fixture("causal-lm").load()
        save_model(loaded.module, loaded.processor, Path(folder))
        if _accepts(make(), folder):
            yield from LoaderChecks(make, folder, api.LoadRequest(folder, loaded.head))
            return
        yield from AcceptingChecks(make, folder)
    why = "it does not accept the shipped source, a transformers folder; use check_loader with a source of yours"
    yield "it_loads_what_was_asked", partial(not_suited, why)


def _of_reader(make: Callable[[], api.Reader]) -> Iterator[Check]:
    """Yield a reader's checks on the shipped sources that it accepts; else on their contents under its own suffixes."""
    with tempfile.TemporaryDirectory() as folder:
        sources = sample_sources(Path(folder))
        accepted = [source for source in sources if _accepts(make(), source)]
        longer = long_files(Path(folder) / "long")
        for source in accepted:
            name = Path(source)
            yield from ReaderChecks(make, source, sources[source], longer.get(name.suffix), on=name.name)
        if accepted:
            return
        reader = make()
        if isinstance(reader, api.FileReader):
            for suffix in reader.suffixes:
                yield from under_suffix(make, suffix, filter(os.path.isfile, sources), longer)
        else:
            yield from AcceptingChecks(make, folder)
    names = ", ".join(Path(source).name for source in sources)
    why = f"it accepts none of the shipped sources ({names}); use check_reader with a file of yours"
    yield "rows_are_those_that_were_written", partial(not_suited, why)


def _of_exporter(make: Callable[[], api.Exporter]) -> Iterator[Check]:
    """Yield an exporter's checks on a small language model with an adapter."""
    with tempfile.TemporaryDirectory() as folder:
        yield from ExporterChecks(make, *exported_run(Path(folder)))


def _of_audit(make: Callable[[], Any]) -> Iterator[Check]:
    shipped = {"clean rows": clean(), "rows with many faults": messy()}
    for name, splits in {**shipped, "a training split alone": {"train": clean()["train"]}}.items():
        with audited_rows(splits) as data:
            yield from AuditChecks(make, data, on=name)


def _of_rule(make: Callable[[], Any]) -> Iterator[Check]:
    return chain.from_iterable(RuleChecks(make, run, on=name) for name, run in stored_runs().items())


def _on_models(
    models: Models, suits: Callable[[Fixture], object], checks: Callable[[Fixture], Iterable[Check]]
) -> Iterator[Check]:
    """Yield checks on each suitable model; for refused models, one that does not apply.

    Args:
        suits: raises an InputError where a component refuses a model.
        checks: yields the checks on one model.
    """
    refused, suited = [], 0
    for model in models:
        try:
            suits(model)
        except InputError as error:
            refused.append((model.name, str(error)))
            continue
        # Whatever else it raises, the checks will tell.
        except (Exception, SystemExit):
            pass
        suited += 1
        yield from checks(model)
    yield from ((name, partial(not_suited, reason)) for name, reason in refused)
    if not suited:
        refusals = "; ".join(f"{name}: {reason}" for name, reason in refused)
        advice = "give one that it suits (`models`, --model), or the strategy that it needs (`strategy`, --strategy)"
        yield SUITED, partial(not_suited, f"it refuses each model ({refusals}); {advice}")


def _require_data_error(make: Callable[[], api.Task], shape: str, rows: Iterable[Any], error: BaseException) -> None:
    assert isinstance(error, InputError), (
        f"rows of {shape} raise {type(error).__name__}: {error}; raise a DataError that names the missing or wrong "
        "column of a row that cannot be used"
    )
    for row in rows:
        with explained(f"view raises for a row of {shape}", "tell no inputs of a row that cannot be read"):
            make().view(row)


def _accepts(loader: api.ModelLoader | api.Reader, source: str) -> bool:
    try:
        return bool(loader.accepts(source))
    except Exception:  # the checks will tell
        return False


SUITES: Mapping[str, Callable[[Callable[[], Any], Models], Iterable[Check]]] = {
    "task": _of_task,
    "strategy": _of_strategy,
    "augmenter": _of_augmenter,
    "regularizer": _of_regularizer,
    "fast-path": _of_fast_path,
    "evaluator": _of_evaluator,
    "loader": lambda make, _: _of_loader(make),
    "reader": lambda make, _: _of_reader(make),
    "optimizer": lambda make, _: OptimizerChecks(make),
    "schedule": lambda make, _: ScheduleChecks(make),
    "audit": lambda make, _: _of_audit(make),
    "rule": lambda make, _: _of_rule(make),
    "callback": lambda make, _: CallbackChecks(make),
    "exporter": lambda make, _: _of_exporter(make),
}
"""For each kind, the function that yields its checks for a factory of the component and models."""
