"""For each kind, its checks on whatever of the shipped models, rows and records suits a component."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ftengine.api import (
    Augmenter,
    ChoosesCriterion,
    Criterion,
    Evaluator,
    Example,
    FitsOnValidation,
    LearnsLabels,
    LoadRequest,
    ModelLoader,
    Prediction,
    Reader,
    ReadsColumns,
    ReadsProcessor,
    Regularizer,
    Strategy,
    Task,
)
from ftengine.data.augmentation import require_suitable
from ftengine.errors import InputError
from ftengine.model import save_model
from ftengine.testing.audited import audited_rows, clean, messy
from ftengine.testing.augmenters import augmenter_checks
from ftengine.testing.callbacks import callback_checks
from ftengine.testing.checks import any_of, skip
from ftengine.testing.evaluators import evaluator_checks
from ftengine.testing.evaluators import rows_of as rows_of_predictions
from ftengine.testing.findings import audit_checks, rule_checks
from ftengine.testing.loaders import accepting_checks, loader_checks
from ftengine.testing.optimizers import optimizer_checks, schedule_checks
from ftengine.testing.predicted import predictions
from ftengine.testing.readers import reader_checks, sample_sources
from ftengine.testing.regularizers import regularizer_checks
from ftengine.testing.runs import stored_runs
from ftengine.testing.samples import Fixture, fixture, fixtures, rows_of
from ftengine.testing.strategies import strategy_checks
from ftengine.testing.tasks import task_checks

Checks = Iterator[tuple[str, Callable[[], None]]]


def of_strategy(make: Callable[[], Strategy]) -> Checks:
    """Yield a strategy's checks on each model that it prepares."""

    def suits(one: Fixture) -> None:
        make().prepare(one.load())

    yield from _on_models(suits, lambda one: strategy_checks(make, one.load, one.batch, one.name))


def of_regularizer(make: Callable[[], Regularizer]) -> Checks:
    """Yield a regularizer's checks on each model that it attaches to; all parameters train."""

    def suits(one: Fixture) -> None:
        regularizer = make()
        regularizer.attach(one.load_trainable(), one.task)
        if isinstance(regularizer, ChoosesCriterion):
            regularizer.criterion(Criterion())

    def checks(one: Fixture) -> Checks:
        return regularizer_checks(make, one.task, one.load_trainable, one.batch, one.name)

    yield from _on_models(suits, checks)


def of_augmenter(make: Callable[[], Augmenter]) -> Checks:
    """Yield an augmenter's checks on the rows of each task that it suits; it has to change something of one of them."""

    def suits(one: Fixture) -> None:
        augmenter = make()
        require_suitable(augmenter, one.task)
        if isinstance(augmenter, ReadsProcessor):
            augmenter.bind_processor(one.processor)

    def checks(one: Fixture) -> Checks:
        return augmenter_checks(make, one.task, one.rows, one.processor, one.name)

    changes = []
    for name, check in _on_models(suits, checks):
        if name == "something_changes":
            changes.append(check)
        else:
            yield name, check
    if changes:
        yield "something_changes", any_of(changes)


def of_task(make: Callable[[], Task]) -> Checks:
    """Yield a task's checks on rows of each shape that it takes, with a model where its head is shipped."""
    head, modality = make().head, make().modality
    known = next((one for one in fixtures() if one.head == head), None)
    reader = known or next((one for one in fixtures() if one.task.modality == modality), None)
    if reader is None:
        yield "rows_suit_it", partial(skip, f"no rows of modality {modality!r} are shipped; use check_task with yours")
        return
    refused, suited = [], 0
    for rows in rows_of(modality):
        shape = ", ".join(rows[0])
        try:
            task = make()
            task.labels = task.bind({"train": rows})
            for row in rows:
                task.encode(row, reader.processor)
        # What a task makes of rows of another shape is checked below.
        except Exception as error:
            refused.append((shape, rows, error))
            continue
        suited += 1
        yield from task_checks(make, reader.processor, rows, known.load if known else None, f"rows of {shape}")
    for refusal in refused:
        yield "other_rows_are_data_errors", partial(_require_data_error, make, *refusal)
    if not suited:
        told = "; ".join(f"rows of {shape}: {said}" for shape, _, said in refused)
        yield "rows_suit_it", partial(skip, f"none of the shipped rows suit it; use check_task with yours ({told})")


def of_evaluator(make: Callable[[], Evaluator]) -> Checks:
    """Yield an evaluator's checks on the predictions that have what it reads."""
    suited, refused = 0, []
    for one in predictions():
        evaluator = make()
        columns = evaluator.columns if isinstance(evaluator, ReadsColumns) else frozenset()
        if not evaluator.reads <= one.keys | columns:
            continue
        try:
            if isinstance(evaluator, LearnsLabels):
                evaluator.bind("a-task", one.labels)
        except InputError as error:
            refused.append((one.name, str(error)))
            continue
        suited += 1
        rows = [{**dict.fromkeys(columns), **prediction} for prediction in one.predictions]
        yield "what_it_cannot_measure_is_refused", partial(_require_scores, evaluator, rows, one.name)
        if _scores(evaluator, rows) is None:
            yield from evaluator_checks(make, rows, one.labels, one.name)
    yield from _refused(refused)
    if not suited:
        keys = sorted(make().reads)
        why = f"no shipped predictions have {keys}; use check_evaluator with predictions that do"
        yield "predictions_suit_it", partial(skip, why)


def _scores(evaluator: Evaluator, predictions: Sequence[Prediction]) -> Exception | None:
    """Return what an evaluator raises where it measures predictions; None where it measures them."""
    try:
        rows = rows_of_predictions(evaluator, predictions)
        if isinstance(evaluator, FitsOnValidation):
            evaluator.fit(rows)
        evaluator.score(rows, np.ones(len(predictions)))
    # Whatever it raises, a run would end there.
    except Exception as error:
        return error
    return None


def _require_scores(evaluator: Evaluator, predictions: Sequence[Prediction], on: str) -> None:
    error = _scores(evaluator, predictions)
    assert error is None, (
        f"on {on}: {type(error).__name__}: {error}. Where it cannot measure a kind of labels, let it refuse them "
        "before anything trains: bind(task, labels) raises RecipeError (ability LearnsLabels)"
    )


def of_loader(make: Callable[[], ModelLoader]) -> Checks:
    """Yield a loader's checks on a small transformers folder, where it accepts that; else those of `accepts`."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = fixture("causal-lm").load()
        save_model(loaded.module, loaded.processor, Path(folder))
        if _accepts(make(), folder):
            yield from loader_checks(make, LoadRequest(folder, loaded.head))
        else:
            yield from accepting_checks(make, folder)
            why = (
                "it does not accept the shipped source, a transformers folder; use check_loader with a source of yours"
            )
            yield "it_loads_what_was_asked", partial(skip, why)


def of_audit(make: Callable[[], Any]) -> Checks:
    """Yield an audit's checks on clean rows, on rows with many faults, and on a training split alone."""
    for name, splits in {
        "clean rows": clean(),
        "rows with many faults": messy(),
        "a training split alone": {"train": clean()["train"]},
    }.items():
        with audited_rows(splits) as data:
            yield from audit_checks(make, data, name)


def of_rule(make: Callable[[], Any]) -> Checks:
    """Yield a rule's checks on the records of each stored run."""
    return chain.from_iterable(rule_checks(make, run, name) for name, run in stored_runs().items())


def of_callback(make: Callable[[], Any]) -> Checks:
    """Yield a callback's checks; skipped where something that its options name is not installed."""
    return callback_checks(make)


def of_reader(make: Callable[[], Reader]) -> Checks:
    """Yield a reader's checks on the shipped sources that it accepts; else those of `accepts`."""
    with tempfile.TemporaryDirectory() as folder:
        sources = sample_sources(Path(folder))
        accepted = [source for source in sources if _accepts(make(), source)]
        for source in accepted:
            yield from reader_checks(make, source, sources[source], Path(source).name)
        if not accepted:
            names = ", ".join(Path(source).name for source in sources)
            yield from accepting_checks(make, folder)
            why = f"it accepts none of the shipped sources ({names}); use check_reader with a file of yours"
            yield "rows_are_those_that_were_written", partial(skip, why)


def of_optimizer(make: Callable[[], Any]) -> Checks:
    """Yield an optimiser's checks on a small network."""
    return optimizer_checks(make)


def of_schedule(make: Callable[[], Any]) -> Checks:
    """Yield a schedule's checks on runs of several lengths."""
    return schedule_checks(make)


def _on_models(suits: Callable[[Fixture], None], checks: Callable[[Fixture], Checks]) -> Checks:
    """Yield checks on each model that suits; those that are refused are skipped, and one has to suit.

    Args:
        suits: raises an InputError where a component refuses a model.
        checks: yields the checks on one model.
    """
    refused, suited = [], 0
    for one in fixtures():
        try:
            suits(one)
        except InputError as error:
            refused.append((one.name, str(error)))
            continue
        # Whatever else it raises, the checks will tell.
        except Exception:
            pass
        suited += 1
        yield from checks(one)
    yield from _refused(refused)
    if not suited:
        told = "; ".join(f"{name}: {reason}" for name, reason in refused)
        yield "it_suits_a_model", partial(_fail, f"it refuses each model that is shipped ({told})")


def _refused(refused: Sequence[tuple[str, str]]) -> Checks:
    for name, reason in refused:
        yield name, partial(skip, reason)


def _fail(reason: str) -> None:
    raise AssertionError(reason)


def _require_data_error(make: Callable[[], Task], shape: str, rows: Sequence[Example], error: Exception) -> None:
    assert isinstance(error, InputError), (
        f"rows of {shape} raise {type(error).__name__}: {error}; a row that cannot be used is a DataError that names "
        "the column which is missing, or wrong"
    )
    for row in rows:
        try:
            make().view(row)
        # Whatever it raises, it must not.
        except Exception as other:
            raise AssertionError(
                f"view raises {type(other).__name__}: {other} for a row of {shape}; it never raises: tell no inputs of "
                "a row that cannot be read"
            ) from other


def _accepts(loader: ModelLoader | Reader, source: str) -> bool:
    try:
        return bool(loader.accepts(source))
    except Exception:  # the checks will tell
        return False
