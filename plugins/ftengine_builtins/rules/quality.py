"""Rules about quality: comparison with the base, metrics that got worse, and limits of the held-out split."""

from collections.abc import Iterator
from typing import Any

from ftengine import RunRecords
from ftengine.api import Difference, Estimate, Finding, Level, Metric, Rule
from ftengine.evaluation import got_worse
from ftengine.text import (
    change_of,
    ends,
    few_groups,
    has_value,
    interval,
    left_out,
    listed,
    number,
    plain,
    probability,
    sample_size,
    value_of,
)
from ftengine_builtins.rules.baseline import exact_answers, of_answers, unmeasured_answers
from ftengine_builtins.rules.learning import ended_early
from ftengine_builtins.rules.threshold import (
    both_figures,
    led_by_figures,
    no_better_than_a_constant,
    shown_metric,
    threshold_of,
)

SMALL_TEST = 100
"""Distinct examples, or groups of them, below which a test set is called small: a 95 % interval of a proportion is then
up to 20 points wide (1.96 · √(0.25 / 100) on each side)."""

FEWEST_TESTED = 30
"""Distinct examples below which a better figure is a note, and that they are few leads the headline: 20 leave the
share of right answers open by up to 40 points (Wilson), 100 by 19."""


class BetterThanBase(Rule):
    """Compares the run with its base by the deciding metric, and with guessing if the base has a fresh head.

    A better figure is a note if examples are few or training ended within its first pass.
    """

    name = "better-than-base"
    order = 1

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        metric = run.headline_metric
        if metric is None:
            brief = "nothing is known about quality"
            text = "Nothing is known about quality: no examples were held out (data.validation, data.test)."
            yield Finding(kind="quality", level="note", text=text, brief=brief)
            return
        tuned = run.evaluation.tuned[metric]
        threshold = threshold_of(run) if run.trained.new_modules and has_value(tuned) else None
        if threshold is not None and (threshold.metric != metric or threshold.baseline.share == 1):
            threshold = None
        if threshold is not None and no_better_than_a_constant(run):
            return  # rule constant-answer says so, and more than what that head guessed is no news
        leaked, without = run.evaluation.leaked, left_out(run.evaluation.leaks)
        on = f"on {sample_size(tuned.n, tuned.rows)} of the {run.evaluation.split} split{without}"
        declared = run.evaluation.metrics[metric]
        if leaked is not None and not declared.relative and has_value(there := leaked.tuned.get(metric)):
            on += f" ({declared.label} {value_of(declared, there)} on those)"
        figures = {"metric": metric, **sides(run.evaluation, metric), **exact_answers(run)}
        brief = both_figures(run, metric)
        if threshold is None:
            level, judgement = _judged(run, metric, on)
        else:
            figures = threshold.figures()
            level, judgement = "note", f"too few examples to compare it with {threshold.best_answer}, {on}."
            if threshold.gain is not None:
                level = "good"
                judgement = f"better than {threshold.best_answer}, a difference of {threshold.size}, {on}."
        if level == "good" and (tuned.n < FEWEST_TESTED or ended_early(run)):
            level = "note"
        text = led_by_figures(run, metric, judgement)
        if leaked is not None:
            brief, figures = f"{brief} (leaking rows left out)", {**figures, "leaked": leaked.tuned.get(metric)}
        explains = ("worse",) if level == "alarm" else ()
        yield Finding(kind="quality", level=level, text=text, brief=brief, explains=explains, figures=figures)


def _judged(run: RunRecords, metric: str, on: str) -> tuple[Level, str]:
    """Return level and text of the comparison with the base."""
    evaluation = run.evaluation
    tuned, base, difference = evaluation.tuned[metric], evaluation.base.get(metric), evaluation.difference.get(metric)
    if not has_value(tuned):
        return "alarm", f"not a number, {on}."
    if base is None or difference is None or not has_value(difference):
        return "note", f"not compared with its base, {on}."
    shown = shown_metric(run, metric)
    change = evaluation.difference.get(shown)
    shown, change = (shown, change) if has_value(change) else (metric, difference)
    size, answers = change_of(evaluation.metrics[shown], change), of_answers(run)
    fallen = fallen_metrics(run)
    word = "and" if difference.better is False else "but"
    but = f", {word} {listed(fallen)};" if fallen else ","
    if difference.better is not None:
        p = probability(difference.p)
        judgement = f"{'better' if difference.better else 'worse'}{but} a difference of {size}{p and f', {p}'}, {on}."
        level: Level = "good" if difference.better else "alarm"
        if difference.better and (fallen or unmeasured_answers(run)):  # a lower loss may go with useless answers
            level = "note"
        return level, f"{judgement}{answers}"
    if ends(difference) is None:
        return "note", f"too few examples to compare it with its base, {on}.{answers}"
    judgement = f"not shown to be better{but} a difference of {size} is within chance, {on}.{answers}"
    return "note", judgement + would_show(change, "This test set", evaluation.metrics[shown])


def fallen_metrics(run: RunRecords) -> list[str]:
    """Return texts on other metrics that got worse beyond chance: "triplet accuracy fell to 85 % (base 93 %)".

    Only the first such metric of each evaluator is named.
    """
    evaluation, by_evaluator = run.evaluation, dict[str, str]()
    for name in evaluation.tuned:
        if name in worse_metrics(run):
            by_evaluator.setdefault(evaluation.metrics[name].evaluator, name)
    texts = []
    for name in by_evaluator.values():
        declared = evaluation.metrics[name]
        tuned, base = (value_of(declared, side[name]) for side in (evaluation.tuned, evaluation.base))
        texts.append(f"{declared.label} {'fell' if declared.higher_is_better else 'rose'} to {tuned} (base {base})")
    return texts


def sides(figures: Any, metric: str) -> dict[str, Any]:
    """Return a metric's figures of base and tuned model and their difference, for a finding."""
    return {side: getattr(figures, side).get(metric) for side in ("base", "tuned", "difference")}


def would_show(difference: Difference, which: str, metric: Metric) -> str:
    """Return a sentence on the smallest detectable difference; "" if unknown."""
    if difference.detectable is None:
        return ""
    least = plain(Estimate(difference.detectable, None, None, 0))
    if metric.proportion:
        least = f"{number(100 * difference.detectable, 1)} points"
    return f" {which} would detect a true difference of {least} or more with 80 % power."


def worse_metrics(run: RunRecords) -> dict[str, float]:
    """Return the metrics other than the headline's that got worse beyond chance, with p adjusted over all.

    Calibration is left to rule calibrated-confidence, and an untrained head is no reference.
    """
    evaluation = run.evaluation
    if run.trained.new_modules:
        return {}
    differences = {
        metric: difference
        for metric, difference in evaluation.difference.items()
        if metric != run.headline_metric and evaluation.metrics[metric].kind != "calibration"
    }
    return got_worse(differences)


class WorseMetrics(Rule):
    """Names every other metric that got worse beyond chance."""

    name = "worse-metrics"
    order = 11

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        for metric, p in worse_metrics(run).items():
            declared, pair = evaluation.metrics[metric], both_figures(run, metric)
            text = f"Worse: {pair}, a difference of "
            text += f"{change_of(declared, evaluation.difference[metric])}, adjusted {probability(p)}."
            figures = {"metric": metric, **sides(evaluation, metric), "p_adjusted": p}
            yield Finding(kind="worse", level="note", text=text, figures=figures)


class HeldOutSplit(Rule):
    """Says how far the held-out split can be trusted: it may be small, or have chosen the weights."""

    name = "held-out-split"
    order = 20
    # Behind what is found in the data: a small split is seldom why a figure is what it is.

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        metric, split = run.headline_metric, run.evaluation.split
        if metric is None:
            return
        figure, label = run.evaluation.tuned[metric], run.evaluation.metrics[metric].label
        few = few_groups(figure.n, figure.worth)
        if few or figure.n < SMALL_TEST:
            between, number = interval(figure), sample_size(figure.n, figure.rows)
            leaves = "leaves" if figure.n == 1 else "leave"
            rest = f" {leaves} {label} anywhere from {between}" if between else ", too few for intervals"
            cut = isinstance(getattr(run.recipe.data, split, None), float)  # more of it would leave less to train on
            lead = "Train on folds (ftengine cross-validate)" if cut else "Hold out more examples"
            explains = tuple[str, ...]()
            if figure.n < FEWEST_TESTED or _too_few_to_show(run):
                explains = ("quality",)
            if _too_few_to_show(run) and not cut:
                lead = f"{lead}, or train on folds (ftengine cross-validate)"
            text = f"{lead}: the {split} split is small; {number}{rest}. {few}".rstrip()
            brief = f"{lead[:1].lower()}{lead[1:]}: {number}{rest}"
            figures = {"examples": figure.n, "rows": figure.rows}
            yield Finding(kind="data", level="note", text=text, brief=brief, explains=explains, figures=figures)
        if split == "validation":
            chosen = "which also chose the weights" if is_chosen(run) else "which is used for choices"
            text = f"Hold out a test split (data.test): figures are of the validation split, {chosen}, so they are "
            text += "optimistic."
            yield Finding(kind="data", level="note", text=text, figures={"split": split})


def _too_few_to_show(run: RunRecords) -> bool:
    """Return whether the model is ahead of the threshold, not significantly, but significantly so by another metric."""
    threshold = threshold_of(run)
    if threshold is None or not (threshold.missed and threshold.is_ahead):
        return False
    return threshold.may_be_better or bool(threshold.beaten(pooled=True))


def is_chosen(run: RunRecords) -> bool:
    """Return whether the validation split decided which weights are kept."""
    among_several = run.recipe.train.keep_best and len(run.validations) > 1
    by_regularizer = any(regularizer.get("needs_validation") for regularizer in run.training.regularizers)
    return bool(among_several or run.training.stopped_early or by_regularizer)
