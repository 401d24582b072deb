"""From tables of predictions to figures: evaluation.json, and figures of evaluators that came later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ftengine.api import (
    Difference,
    Evaluator,
    ExampleScores,
    FitsOnValidation,
    KnowsMistakes,
    Labels,
    LearnsLabels,
    ScoresExamples,
)
from ftengine.evaluation.differences import beyond_chance, compare, gap_between
from ftengine.evaluation.examples import answers_to_read, exact_p, scored_by, single_examples
from ftengine.evaluation.figures import Figure, declarations, details, estimates, measure, to_json
from ftengine.evaluation.plan import EvalPlan, EvalSet, Probe
from ftengine.evaluation.runner import EvalResult
from ftengine.evaluation.significance import mcnemar
from ftengine.evaluation.slices import Side, adjust_over_columns, slice_report
from ftengine.evaluation.table import Predictions
from ftengine.evaluation.weights import Weights
from ftengine.run.evaluation_result import Details, Displays, EvaluationResult, Examples


@dataclass
class Measured:
    """What one model came to on one set of examples.

    Args:
        predictions: the table.
        figures: by metric.
        details: facts by evaluator and name.
        displays: of all evaluators, as JSON values.
        scores: of single examples, by evaluator.
        mistakes: (n,) how sure the model was where it is wrong, by evaluator.
        seen: (n,) the examples that each evaluator sees, by its name.
        slices: what `slice_report` needs of the evaluator by which slices are measured.
    """

    predictions: Predictions
    figures: dict[str, Figure] = field(default_factory=dict)
    details: dict[str, dict[str, Any]] = field(default_factory=dict)
    displays: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, ExampleScores] = field(default_factory=dict)
    mistakes: dict[str, np.ndarray] = field(default_factory=dict)
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    slices: Side | None = None

    def add(
        self,
        evaluator: Evaluator,
        weights: Weights,
        *,
        answering: bool,
        sliced: bool = False,
        keep: bool = False,
        told: bool = True,
    ) -> None:
        """Measure with one more evaluator, which is bound, and fitted where it fits.

        Args:
            evaluator: what measures.
            weights: of all examples.
            answering: whether it sees free answers only.
            sliced: whether slices are measured by it.
            keep: whether the table is without what it keeps, since it came later.
            told: whether more than figures is wanted.
        """
        seen = self.predictions.answered if answering else np.ones(len(self.predictions), dtype=bool)
        part, own = self.predictions if seen.all() else self.predictions.take(seen), weights.under(seen)
        rows = (part.keeping(evaluator) if keep else part).rows(evaluator)
        self.figures |= measure(evaluator, rows, own)
        if not told:
            return
        facts, displays = details(evaluator, rows, own)
        if facts:
            self.details[evaluator.name] = facts
        self.displays += displays
        self.seen[evaluator.name] = seen
        judged = evaluator.example_scores(rows) if isinstance(evaluator, ScoresExamples) and seen.any() else None
        if judged is not None:
            score, right = np.full((2, len(seen)), np.nan)
            score[seen], right[seen] = judged.score, judged.right
            self.scores[evaluator.name] = ExampleScores(score, right)
        if isinstance(evaluator, KnowsMistakes) and seen.any():
            self.mistakes[evaluator.name] = np.full(len(seen), np.nan)
            self.mistakes[evaluator.name][seen] = evaluator.mistakes(rows)
        if sliced:
            self.slices = Side(rows, judged)


@dataclass(frozen=True)
class Evaluation:
    """Base and tuned model, measured as planned.

    Args:
        plan: what was measured.
        base, tuned: by the name of the set.
        report: what evaluation.json holds.
    """

    plan: EvalPlan
    base: Mapping[str, Measured]
    tuned: Mapping[str, Measured]
    report: EvaluationResult

    def examples(self) -> Examples | None:
        """Return what examples.json holds; None without held-out examples."""
        held = self.plan.held_out
        if held is None:
            return None
        sides = self.base[held.name], self.tuned[held.name]
        tables = [one.predictions for one in sides]
        found = single_examples(held, tables, [one.scores for one in sides], sides[1].mistakes)
        if (of := self.plan.to_read) is not None:
            found |= answers_to_read(of, *(side[of.name].predictions for side in (self.base, self.tuned)))
        return Examples.model_validate(found)


def bind(evaluators: Sequence[Evaluator], task: str, labels: Labels | None) -> None:
    """Tell evaluators the labels, where they want to know."""
    for evaluator in evaluators:
        if isinstance(evaluator, LearnsLabels):
            evaluator.bind(task, labels)


def fit(evaluators: Sequence[Evaluator], validation: Predictions | None, *, keep: bool = False) -> None:
    """Let evaluators that fit learn from a model's predictions on validation; `keep` as in `Measured.add`."""
    for evaluator in evaluators:
        if isinstance(evaluator, FitsOnValidation):
            seen = validation.keeping(evaluator) if keep and validation is not None else validation
            evaluator.fit(None if seen is None else seen.rows(evaluator))


def evaluate(plan: EvalPlan, base: EvalResult, tuned: EvalResult) -> Evaluation:
    """Make all figures of two models from what they said.

    Args:
        plan: what was to be measured; its evaluators know the labels.
        base, tuned: what the models said.
    """
    weights: dict[str, Weights] = {}
    before, after = (_measured(plan, result, weights) for result in (base, tuned))
    report = EvaluationResult.model_validate(_report(plan, before, after, weights))
    return Evaluation(plan, before, after, report)


def _measured(plan: EvalPlan, result: EvalResult, weights: dict[str, Weights]) -> dict[str, Measured]:
    fitted: set[int] = set()
    found = {}
    for one in plan.sets():
        if one is plan.validation:
            continue
        predictions = result.predictions(one)
        if one.name not in weights:
            weights[one.name] = Weights(predictions.groups, plan.seed, plan.resamples)
        new = [evaluator for evaluator in one.evaluators if id(evaluator) not in fitted]
        fitting = [evaluator for evaluator in new if isinstance(evaluator, FitsOnValidation)]
        if fitting:
            there = plan.validation is not None and plan.validation in plan.sets()
            fit(fitting, result.predictions(plan.validation) if plan.validation is not None and there else None)
        fitted |= {id(evaluator) for evaluator in new}
        found[one.name] = Measured(predictions)
        for i, evaluator in enumerate(one.evaluators):
            sliced = i == 0 and bool(one.slices)
            found[one.name].add(evaluator, weights[one.name], answering=evaluator in one.answering, sliced=sliced)
    return found


def _report(
    plan: EvalPlan, before: Mapping[str, Measured], after: Mapping[str, Measured], weights: Mapping[str, Weights]
) -> dict[str, Any]:
    """Return what evaluation.json holds, in JSON values; empty figures without a held-out split."""
    report: dict[str, Any] = {
        "split": plan.split,
        "metrics": declarations(one.figures for one in reversed(list(after.values()))),
        "base": {},
        "tuned": {},
        "difference": {},
        "details": Details(),
        "displays": Displays(),
        "paired": None,
        "training": None,
        "slices": {},
        "probes": [],
    }
    held = plan.held_out
    if held is not None:
        base, tuned = before[held.name], after[held.name]
        report["paired"] = paired(base, tuned)
        report |= compared(base, tuned)
        report["slices"] = _slices(plan, held, (base, tuned), weights[held.name])
    if plan.training is not None:
        report["training"] = _training(before[plan.training.name], after[plan.training.name])
    clean = None if held is None else after[held.name]
    report["probes"] = [_probe(probe, before, after, clean) for probe in plan.probes]
    return report


def compared(base: Measured, tuned: Measured) -> dict[str, Any]:
    """Return figures, differences, details and displays of two models on the same examples."""
    differences = compare(base.figures, tuned.figures, exact_of(base, tuned))
    difference = {name: to_json(value) for name, value in differences.items()}
    return {
        "base": estimates(base.figures),
        "tuned": estimates(tuned.figures),
        "difference": difference,
        "details": {"base": base.details, "tuned": tuned.details},
        "displays": {"base": base.displays, "tuned": tuned.displays},
    }


def exact_of(base: Measured, tuned: Measured) -> dict[str, float]:
    """Return McNemar's p-value for each metric that is the share of right answers; {} where there is none."""
    name = scored_by(base.scores, tuned.scores)
    if name is None:
        return {}
    scores = base.scores[name], tuned.scores[name]
    return exact_p(*scores, tuned.predictions.groups, tuned.seen[name], base.figures, tuned.figures)


def paired(base: Measured, tuned: Measured) -> dict[str, Any] | None:
    """Return what both, one or neither got right, with McNemar's p; None where nothing is right or wrong."""
    name = scored_by(base.scores, tuned.scores)
    found = None if name is None else mcnemar(base.scores[name], tuned.scores[name], tuned.predictions.groups)
    return None if found is None else {"evaluator": name, **found}


def _slices(plan: EvalPlan, held: EvalSet, sides: Sequence[Measured], weights: Weights) -> dict[str, Any]:
    """Return what evaluation.json says of each column; examples that the first evaluator does not see are left out."""
    base, tuned = sides
    if base.slices is None or tuned.slices is None:
        return {}
    evaluator = held.evaluators[0]
    seen = tuned.seen[evaluator.name]
    reports = {
        column: slice_report(
            values[seen],
            evaluator,
            base.slices,
            tuned.slices,
            weights.under(seen),
            tuned.predictions.groups[seen],
            plan.small_slice,
        )
        for column, values in tuned.predictions.slices()
    }
    adjust_over_columns(reports)
    return reports


def _training(base: Measured, tuned: Measured) -> dict[str, Any]:
    """Return what evaluation.json says of the sample of training rows."""
    report = {
        "n": len(tuned.predictions),
        "base": estimates(base.figures),
        "tuned": estimates(tuned.figures),
        "judged": None,
    }
    name = scored_by(tuned.scores, tuned.scores)
    if name is not None:
        columns = tuned.scores[name].score, tuned.scores[name].right, tuned.predictions.columns["place"]
        rows = [
            [None if np.isnan(score) else float(score), None if np.isnan(right) else bool(right), place]
            for score, right, place in zip(*columns, strict=True)
        ]
        report["judged"] = {"evaluator": name, "rows": rows}
    return report


def _probe(
    probe: Probe, before: Mapping[str, Measured], after: Mapping[str, Measured], clean: Measured | None
) -> dict[str, Any]:
    """Return what evaluation.json says of one probe."""
    base, tuned = before[probe.examples.name], after[probe.examples.name]
    report = {
        "kind": probe.kind,
        "name": probe.name,
        "data": probe.data,
        "examples": len(tuned.predictions),
        **compared(base, tuned),
        "against": {},
    }
    if probe.kind == "robustness" and clean is not None:
        report["against"] = {name: to_json(d) for name, d in compare(clean.figures, tuned.figures).items()}
    if probe.contrast is not None:
        held = {"base": before[probe.contrast.name].figures, "tuned": after[probe.contrast.name].figures}
        report["held_out"] = {side: estimates(figures) for side, figures in held.items()}
        report["against"] = _against(held["tuned"], tuned.figures)
    return report


def _against(first: Mapping[str, Figure], second: Mapping[str, Figure]) -> dict[str, Any]:
    """Return second minus first of different examples; `better` is where the gap is beyond chance and wanted."""
    report = {}
    for name, figure in second.items():
        gap = gap_between(first.get(name), figure)
        if gap is not None:
            found = gap.to_json()
            low, high, p = found["low"], found["high"], found["p"]
            better = beyond_chance(low, high, p, figure.metric.higher_is_better)
            report[name] = to_json(Difference(gap.value, low, high, p, better))
            del report[name]["detectable"]
    return report
