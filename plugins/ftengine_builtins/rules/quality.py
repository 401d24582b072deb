"""Rules about quality: is the tuned model better than its base, what got worse, and what the split leaves open."""

from collections.abc import Iterator
from typing import Any

from ftengine import RunRecords
from ftengine.api import Difference, Estimate, Finding, Rule
from ftengine.evaluation import got_worse
from ftengine.text import (
    against,
    ends,
    few_groups,
    interval,
    known,
    left_out,
    listed,
    plain,
    probability,
    sample_size,
    with_interval,
)
from ftengine_builtins.rules.baseline import exact_answers, of_answers, unmeasured_answers
from ftengine_builtins.rules.threshold import no_better_than_a_constant, threshold_of

SMALL_TEST = 100
"""Distinct examples, or groups of them, below which a test set is called small: a 95 % interval of a proportion is then
up to 20 points wide (1.96 · √(0.25 / 100) on each side)."""


class BetterThanBase(Rule):
    """Compares the run with its base by the metric that decides; where the base has a fresh head, with guessing."""

    name = "better-than-base"
    order = 1
    about = "the comparison with its base"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        metric = run.headline_metric
        if metric is None:
            text = "Nothing is known about quality: no examples were held out (data.validation, data.test)."
            yield Finding(kind="quality", level="note", text=text)
            return
        tuned = run.evaluation.tuned[metric]
        guesses = bool(run.trained.new_modules) and known(tuned)
        threshold = threshold_of(run) if guesses else None
        if threshold is not None and (threshold.metric != metric or threshold.baseline.share == 1):
            threshold = None
        if threshold is not None and no_better_than_a_constant(run):
            return  # rule constant-answer says so, and more than what that head guessed is no news
        leaked, without = run.evaluation.leaked, left_out(run.evaluation.leaks)
        on = f"on {sample_size(tuned.n, tuned.rows)} of the {run.evaluation.split} split{without}"
        comparable = not run.evaluation.metrics[metric].relative
        if leaked is not None and comparable and known(there := leaked.tuned.get(metric)):
            on += f" ({_label(run, metric)} {plain(there)} on those)"
        figures = {"metric": metric, **sides(run.evaluation, metric), **exact_answers(run)}
        if threshold is not None:
            figures = threshold.figures()
        if threshold is None:
            level, text, brief = _judged(run, metric, on)
        elif threshold.gain is None:
            pair = threshold.pair(metric)
            brief = f"too few examples to compare it with {threshold.answer}"
            level, text = "note", f"T{brief[1:]}: {pair}, {on}."
        else:
            brief = f"better than {threshold.answer}: {_label(run, metric)} {against(tuned, threshold.reached())}"
            level, text = "good", f"Better than {threshold.answer}: {threshold.comparison()}, {on}."
        text += (
            " Its base has a new, untrained head, whose answers are guesses." if guesses and threshold is None else ""
        )
        if leaked is not None:
            brief, figures = f"{brief} (leaking rows left out)", {**figures, "leaked": leaked.tuned.get(metric)}
        explains = ("worse",) if level == "alarm" else ()
        yield Finding(kind="quality", level=level, text=text, brief=brief, explains=explains, figures=figures)


def _judged(run: RunRecords, metric: str, on: str) -> tuple[str, str, str]:
    """Return level, text and brief text of the comparison with the base."""
    evaluation, name = run.evaluation, _label(run, metric)
    tuned, base, difference = evaluation.tuned[metric], evaluation.base.get(metric), evaluation.difference.get(metric)
    if not known(tuned):
        also = ", as is its base's" if base is not None and not known(base) else ""
        brief = f"not a number: the tuned model's {name} is undefined"
        return "alarm", f"N{brief[1:]} {on}{also}.", brief
    if base is None or difference is None or not known(difference):
        brief = "not compared with its base"
        return "note", f"N{brief[1:]}: {name} {with_interval(tuned)} {on}.", brief
    pair, size = f"{name} {against(tuned, base)}", f"a difference of {with_interval(difference, sign=True)}"
    answers = of_answers(run)
    if difference.better is not None:
        p, word = probability(difference.p), "better" if difference.better else "worse"
        level, lead = "good" if difference.better else "alarm", f"{word} than its base: "
        if difference.better and unmeasured_answers(run):  # a lower loss may go with useless answers
            level, lead, pair = "note", f"its {name} is better than its base's: ", against(tuned, base)
        lead = f"{lead}{pair}"
        return level, f"{lead[:1].upper()}{lead[1:]}, {size}{p and f', {p}'}, {on}.{answers}", lead
    if ends(difference) is None:
        brief = "too few examples to tell it from its base"
        return "note", f"T{brief[1:]}: {pair}, {on}.{answers}", f"{brief}: {pair}"
    named = [evaluation.metrics[one].label for one in worse_metrics(run)]
    brief = f"not shown to be better than its base: {pair}"
    lead = "Not shown to be better than its base" + (f", and worse in {listed(named)}" if named else "")
    text = f"{lead}: {pair}, {size}, which is within chance, {on}.{answers}"
    return "note", text + would_show(difference, "This test set"), brief


def _label(run: RunRecords, metric: str) -> str:
    return run.evaluation.metrics[metric].label


def sides(figures: Any, metric: str) -> dict[str, Any]:
    """Return a metric's figures of base and tuned model and their difference, as a finding holds them."""
    return {side: getattr(figures, side).get(metric) for side in ("base", "tuned", "difference")}


def would_show(difference: Difference, which: str) -> str:
    """Say which true difference some examples would show; "" where that is not known."""
    if difference.detectable is None:
        return ""
    least = plain(Estimate(difference.detectable, None, None, 0))
    return f" {which} would detect a true difference of {least} or more with 80 % power."


def worse_metrics(run: RunRecords) -> dict[str, float]:
    """Return the metrics that got worse beyond chance, without the headline's own, with p adjusted over all.

    A change of confidence is told by rule calibrated-confidence, where it matters; worse than a fresh head is nothing.
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
    about = "other metrics"

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        for metric, p in worse_metrics(run).items():
            label, pair = evaluation.metrics[metric].label, against(evaluation.tuned[metric], evaluation.base[metric])
            text = f"{label[:1].upper()}{label[1:]} got worse: {pair}, a difference of "
            text += f"{with_interval(evaluation.difference[metric], sign=True)}, adjusted {probability(p)}."
            figures = {"metric": metric, **sides(evaluation, metric), "p_adjusted": p}
            yield Finding(kind="worse", level="note", text=text, figures=figures)


class HeldOutSplit(Rule):
    """Says what the held-out split itself leaves open: it is small, or it is the one that weights were chosen by."""

    name = "held-out-split"
    order = 2
    about = "the data"

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
            lead, explains = "Hold out more examples", ()
            if _too_few_to_show(run):
                lead, explains = f"{lead}, or train on folds (ftengine cross-validate)", ("quality",)
            text = f"{lead}: the {split} split is small; {number}{rest}. {few}".rstrip()
            brief = f"{lead[:1].lower()}{lead[1:]}: {number}{rest}"
            figures = {"examples": figure.n, "rows": figure.rows}
            yield Finding(kind="data", level="note", text=text, brief=brief, explains=explains, figures=figures)
        if split == "validation":
            chosen = "which also chose the weights" if is_chosen(run) else "by which choices are made"
            text = f"Hold out a test split (data.test): figures are of the validation split, {chosen}, so they are "
            text += "optimistic."
            yield Finding(kind="data", level="note", text=text, figures={"split": split})


def _too_few_to_show(run: RunRecords) -> bool:
    """Say whether a model is ahead of the best constant answer, and of guessing beyond chance by another metric."""
    threshold = threshold_of(run)
    if threshold is None or not (threshold.missed and threshold.is_ahead):
        return False
    return threshold.may_be_better or bool(threshold.beaten(pooled=True))


def is_chosen(run: RunRecords) -> bool:
    """Say whether the validation split decided which weights are kept, the last ones included."""
    among_several = run.recipe.train.keep_best and len(run.validations) > 1
    by_regularizer = any(one.get("needs_validation") for one in run.training.regularizers)
    return bool(among_several or run.training.stopped_early or by_regularizer)
