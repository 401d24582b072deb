"""Computing figures from tables of predictions, for evaluation.json and for later evaluators."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftengine.api import (
    Baseline,
    Display,
    Evaluator,
    ExampleScores,
    FittedEvaluator,
    Labels,
    Listener,
    Rows,
    Task,
    overrides,
)
from ftengine.equivalence import differing_figures
from ftengine.errors import DataError, PluginError
from ftengine.evaluation.differences import beyond_baseline, compare, difference_of_differences, gaps_between
from ftengine.evaluation.examples import answers_to_read, exact_test, scored_by, single_examples
from ftengine.evaluation.figures import ResampledFigure, declarations, details, estimates, measure
from ftengine.evaluation.plan import Benchmark, EvalPlan, EvalSet, PlannedProbe, calibrates
from ftengine.evaluation.runner import EvalResult
from ftengine.evaluation.significance import PValue, mcnemar
from ftengine.evaluation.slices import Side, slice_reports
from ftengine.evaluation.table import Predictions
from ftengine.evaluation.weights import Weights
from ftengine.plugins.attribution import contract_error, json_mapping, named, without
from ftengine.run import evaluation_result as record

LONG = 10.0
"""Seconds that an evaluator may take for the figures of a model without a word."""


@dataclass
class Measured:
    """The results of one model on one set of examples.

    `figures` are by metric, `details` by evaluator and name. `scores` of single examples and `masks`, (n,) bool of the
    examples that an evaluator reads, are by evaluator.
    """

    predictions: Predictions
    figures: dict[str, ResampledFigure] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    displays: list[Display] = field(default_factory=list)
    scores: dict[str, ExampleScores] = field(default_factory=dict)
    masks: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, evaluator: Evaluator, weights: Weights, *, answering: bool, keep: bool = False) -> None:
        """Measure with one more evaluator, which is bound and fitted.

        Args:
            weights: of all examples.
            answering: whether it reads generations only.
            keep: whether to compute the columns that it keeps, since the table lacks them.
        """
        mask = self.predictions.answered if answering else np.ones(len(self.predictions), dtype=bool)
        part, own = self.predictions if mask.all() else self.predictions.take(mask), weights.under(mask)
        rows = (part.keeping(evaluator) if keep else part).rows(evaluator)
        require_weighing(evaluator, rows, len(own))
        figures = measure(evaluator, rows, own)
        self.figures |= figures
        facts, displays = details(evaluator, rows, own)
        if (baseline := Baseline.of(facts)) is not None:
            gains = beyond_baseline(evaluator, rows, own, figures, baseline.figures)
            facts |= [baseline.model_copy(update={"gains": gains}).fact()]
        if facts:
            self.details[evaluator.name] = facts
        self.displays += displays
        self.masks[evaluator.name] = mask
        judged = evaluator.score_examples(rows) if overrides(evaluator, "score_examples") and mask.any() else None
        if judged is not None:
            every = np.full((3, len(mask)), np.nan)
            every[:2, mask] = judged.score, judged.right
            every[2, mask] = np.nan if judged.wrong_confidence is None else judged.wrong_confidence
            self.scores[evaluator.name] = ExampleScores(*every)

    def read_by(self, evaluator: Evaluator) -> Side:
        """Return the examples that an evaluator reads, and its scores."""
        mask, judged = self.masks[evaluator.name], self.scores.get(evaluator.name)
        scores = None if judged is None else ExampleScores(judged.score[mask], judged.right[mask])
        return Side(self.predictions.take(mask).rows(evaluator), scores)


def bind(evaluators: Sequence[Evaluator], task: str, labels: Labels | None) -> None:
    """Give the labels to evaluators."""
    for evaluator in evaluators:
        evaluator.set_labels(task, labels)


def fit(evaluators: Iterable[Evaluator], validation: Predictions | None, *, keep: bool = False) -> None:
    """Fit evaluators on a model's predictions on validation; `keep` is as in `Measured.add`."""
    for evaluator in evaluators:
        if isinstance(evaluator, FittedEvaluator):
            predictions = validation.keeping(evaluator) if keep and validation is not None else validation
            evaluator.fit(None if predictions is None else predictions.rows(evaluator))


def calibrate(task: Task, plan: EvalPlan, tuned: EvalResult) -> tuple[dict[str, Any], str]:
    """Calibrate a task on the tuned model's validation predictions; return the result, and why it is empty, else ""."""
    of = plan.held_out if plan.split == "validation" else plan.validation
    if not calibrates(task):
        return {}, f"task {task.name!r} fits nothing on a validation split"
    if of is None:
        return {}, "it had no validation split to fit on (recipe key data.validation)"
    try:
        fitted = task.calibrate(tuned.predictions(of).by_key())
    except DataError as error:
        return {}, str(error).removesuffix(".")
    return json_mapping(task, "calibrate", fitted), ""


def evaluate(
    plan: EvalPlan, before: Mapping[str, Measured], after: Mapping[str, Measured]
) -> tuple[record.EvaluationResult, record.Examples | None]:
    """Compute all figures of two models from the results of each (`measure_all`).

    Also returns the examples that tuning changed most; None without held-out examples.
    """
    report, held = _report(plan, before, after), plan.held_out
    if held is None:
        return report, None
    sides = before[held.name], after[held.name]
    examples = single_examples(held, [side.predictions for side in sides], [side.scores for side in sides])
    examples["writes"] = plan.writes
    if (of := plan.to_read) is not None:
        examples |= answers_to_read(of, before[of.name].predictions, after[of.name].predictions)
    return report, record.Examples.model_validate(examples)


def measure_all(plan: EvalPlan, result: EvalResult, listener: Listener | None = None) -> dict[str, Measured]:
    """Measure a model on each set, with evaluators that have the labels.

    The listener receives a message on evaluators that take long.
    """
    fit({evaluator for eval_set in plan.sets() for evaluator in eval_set.evaluators}, None)
    if plan.validation is not None:
        fit(plan.validation.evaluators, result.predictions(plan.validation))
    seconds = defaultdict[Evaluator, float](float)
    measured, every = {}, list[tuple[EvalSet | Benchmark, Sequence[Evaluator], Sequence[Evaluator]]]()
    every += [
        (eval_set, eval_set.evaluators, eval_set.answering)
        for eval_set in plan.sets()
        if eval_set is not plan.validation
    ]
    every += [(benchmark, [benchmark.evaluator], ()) for benchmark in plan.benchmarks]
    for eval_set, evaluators, answering in every:
        predictions = result.predictions(eval_set)
        weights = predictions.weights(plan.seed, plan.resamples)
        measured[eval_set.name] = Measured(predictions)
        for evaluator in evaluators:
            began = time.monotonic()
            measured[eval_set.name].add(evaluator, weights, answering=evaluator in answering)
            seconds[evaluator] += time.monotonic() - began
    for evaluator, took in seconds.items():
        if listener is not None and took > LONG:
            repair = "" if overrides(evaluator, "score_resamples") else "; its `score_resamples` could make that short"
            listener.message(
                f"{named(evaluator)} took {took:,.0f} s to measure the base in {plan.resamples:,} resamples, and will "
                f"again for the tuned model and each slice (evaluation.resamples: less takes less){repair}"
            )
    return measured


def _report(plan: EvalPlan, before: Mapping[str, Measured], after: Mapping[str, Measured]) -> record.EvaluationResult:
    """Return the contents of evaluation.json; without a held-out split it has no figures."""
    held, clean, fields = plan.held_out, None, dict[str, Any]()
    if held is None:
        fields = {"base": {}, "tuned": {}, "difference": {}, "details": record.Details(), "displays": record.Displays()}
    else:
        base, clean = before[held.name], after[held.name]
        fields = {**compared(base, clean), "paired": paired(base, clean), "slices": _slices(plan, held, base, clean)}
    if plan.training is not None:
        sides = before[plan.training.name], after[plan.training.name]
        fields["training"] = _training(*sides, None if held is None else (before[held.name], after[held.name]))
    return record.EvaluationResult(
        split=plan.split,
        metrics=declarations(measured.figures for measured in reversed(list(after.values()))),
        probes=(
            *(_probe(probe, before, after, clean) for probe in plan.probes),
            *(_benchmark(benchmark, before[benchmark.name], after[benchmark.name]) for benchmark in plan.benchmarks),
        ),
        **fields,
    )


def compared(base: Measured, tuned: Measured) -> dict[str, Any]:
    """Return figures, differences, details and displays of two models on the same examples, by the record's fields."""
    same = base.predictions.equals(tuned.predictions)
    return {
        "base": estimates(base.figures),
        "tuned": estimates(tuned.figures),
        "difference": compare(base.figures, tuned.figures, exact_of(base, tuned), same=same),
        "details": record.Details(base=base.details, tuned=tuned.details),
        "displays": record.Displays(base=tuple(base.displays), tuned=tuple(tuned.displays)),
    }


def exact_of(base: Measured, tuned: Measured) -> dict[str, PValue]:
    """Return McNemar's test for each metric that is the share of right answers; {} if there is none."""
    name = scored_by(base.scores, tuned.scores)
    if name is None:
        return {}
    scores, weights = (base.scores[name], tuned.scores[name]), tuned.predictions.weights(0, 0)
    return exact_test(*scores, weights, tuned.masks[name], base.figures, tuned.figures)


def paired(base: Measured, tuned: Measured) -> record.Paired | None:
    """Count what both, one or neither model got right, with McNemar's p; None if nothing is right or wrong."""
    name = scored_by(base.scores, tuned.scores)
    counts = None if name is None else mcnemar(base.scores[name], tuned.scores[name], tuned.predictions.weights(0, 0))
    return None if counts is None else record.Paired(evaluator=name or "", **counts)


def _slices(plan: EvalPlan, held: EvalSet, base: Measured, tuned: Measured) -> dict[str, record.SlicedColumn]:
    """Return the slices of each column, without examples that the first evaluator does not read."""
    if not held.slices or not held.evaluators:
        return {}
    evaluator = held.evaluators[0]
    mask = tuned.masks[evaluator.name]
    columns = {name: values[mask] for name, values in tuned.predictions.slices()}
    weights = tuned.predictions.weights(plan.seed, plan.resamples).under(mask)
    return slice_reports(
        columns, evaluator, base.read_by(evaluator), tuned.read_by(evaluator), weights, plan.small_slice
    )


def _training(base: Measured, tuned: Measured, held: tuple[Measured, Measured] | None) -> record.OnTraining:
    """Return the results on the training sample; `held` are base and tuned model on held-out examples."""
    name, judged = scored_by(tuned.scores, tuned.scores), None
    if name is not None:
        columns = tuned.scores[name].score, tuned.scores[name].right, tuned.predictions.columns["place"]
        rows = (
            (None if np.isnan(score) else float(score), None if np.isnan(right) else bool(right), place)
            for score, right, place in zip(*columns, strict=True)
        )
        judged = record.Judged(evaluator=name, rows=tuple(rows))
    figures = {what: values for what, values in compared(base, tuned).items() if what in record.OnTraining.model_fields}
    if held is not None:
        figures["base_gap"], figures["gap"] = (
            gaps_between(new.figures, trained.figures) for new, trained in zip(held, (base, tuned), strict=True)
        )
        figures["grown"] = difference_of_differences(compared(*held)["difference"], figures["difference"])
    return record.OnTraining(n=len(tuned.predictions), **figures, judged=judged)


def _probe(
    probe: PlannedProbe, before: Mapping[str, Measured], after: Mapping[str, Measured], clean: Measured | None
) -> record.Probe:
    """Return the results of one probe; `clean` is the tuned model on the unchanged held-out examples."""
    base, tuned = before[probe.examples.name], after[probe.examples.name]
    beside = dict[str, Any]()
    if probe.kind in ("robustness", "ablation") and clean is not None:
        beside["against"] = compared(clean, tuned)["difference"]
    if probe.contrast is not None:
        held = {"base": before[probe.contrast.name].figures, "tuned": after[probe.contrast.name].figures}
        beside["held_out"] = {side: estimates(figures) for side, figures in held.items()}
        beside["against"] = gaps_between(held["tuned"], tuned.figures)
    beside |= compared(base, tuned)
    return record.Probe(kind=probe.kind, name=probe.name, data=probe.data, examples=len(tuned.predictions), **beside)


def _benchmark(benchmark: Benchmark, base: Measured, tuned: Measured) -> record.Probe:
    n = len(tuned.predictions)
    if n != len(base.predictions):
        rows = tuned.predictions.columns["row"].tolist()
        allowed = f"the {len(base.predictions):,} of {benchmark.data!r} as of the base"
        raise contract_error(benchmark.asker, "ask_models", rows, allowed)
    return record.Probe(
        kind="benchmark", name=benchmark.asker.name, data=benchmark.data, examples=n, **compared(base, tuned)
    )


ASKED = 128
"""Rows at most that are asked, at equal distances."""


def require_weighing(evaluator: Evaluator, rows: Rows, count: int) -> None:
    """Refuse an evaluator that depends on the order of rows, or for which weight 2 is not the row twice (PluginError).

    It scores some of the rows again; an error is ignored, as computing the figures raises it as well.

    Args:
        rows: columns of `count` rows, as `Evaluator.score` takes them.
    """
    chosen = np.arange(count)[:: -(-count // ASKED) or 1]
    if len(chosen) < 2:
        return
    draw = np.random.default_rng(0)
    order, doubled = draw.permutation(len(chosen)), np.arange(len(chosen)) % 2 == 0
    some = {name: column[chosen] for name, column in rows.items()}
    twice = {name: np.concatenate([column, column[doubled]]) for name, column in some.items()}
    try:
        with np.errstate(all="ignore"):
            plain = evaluator.score(some, np.ones(len(chosen)))
            shuffled = evaluator.score({name: x[order] for name, x in some.items()}, np.ones(len(chosen)))
            weighed = evaluator.score(some, 1.0 + doubled)
            repeated = evaluator.score(twice, np.ones(len(chosen) + int(doubled.sum())))
        faults = {
            "for the same rows in another order": differing_figures(plain, shuffled),
            "for every other row with weight 2, and with that row twice": differing_figures(weighed, repeated),
        }
    except Exception:  # computing the figures raises it again
        return
    for what, differing in faults.items():
        if differing:
            raise PluginError(
                f"{named(evaluator)}: score() gives {differing} {what}; these figures must be equal, as intervals, "
                f"tests and slices weigh rows. Apply `weights` to each row by itself.{without(evaluator)}"
            )
