"""Rules about quality: is the tuned model better than its base, what got worse, and what the split leaves open."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from ftengine.api import Difference, Estimate, Finding, Rule
from ftengine.api.figures import against, counted, ends, interval, known, listed, plain, probability, to_json
from ftengine.api.figures import with_interval as told
from ftengine_builtins.rules.chance import got_worse

if TYPE_CHECKING:
    from ftengine import RunRecords

SMALL_TEST = 100
"""Distinct examples below which a test set is called small: a 95 % interval of a proportion is then up to
20 points wide (1.96 · √(0.25 / 100) on each side)."""


class BetterThanBase(Rule):
    """Says whether the run is better than its base by the task's first metric: the verdict's headline."""

    name = "better-than-base"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        metric, evaluation = run.headline_metric, run.evaluation
        if metric is None:
            text = "Nothing is known about quality: no examples were held out (data.validation, data.test)."
            yield Finding(kind="quality", level="note", text=text)
            return
        tuned, base = evaluation.tuned[metric], evaluation.base.get(metric)
        difference = evaluation.difference.get(metric)
        on = f"on {counted(tuned.n, 'distinct example')} of the {evaluation.split} split"
        level, text = _judged(run, metric, on)
        sides = {"base": base, "tuned": tuned, "difference": difference}
        figures = {"metric": metric} | {side: to_json(one) for side, one in sides.items()}
        yield Finding(kind="quality", level=level, text=text, figures=figures)


def _judged(run: RunRecords, metric: str, on: str) -> tuple[Literal["alarm", "note", "good"], str]:
    """Return level and text of the headline."""
    evaluation, name = run.evaluation, run.evaluation.metrics[metric].label
    tuned, base, difference = evaluation.tuned[metric], evaluation.base.get(metric), evaluation.difference.get(metric)
    if not known(tuned):
        also = ", as is its base's" if base is not None and not known(base) else ""
        return "alarm", f"Not a number: the tuned model's {name} is undefined {on}{also}."
    if base is None or difference is None or not known(difference):
        return "note", f"Not compared with its base: {name} {told(tuned)} {on}."
    pair, size = f"{name} {against(tuned, base)}", f"a difference of {told(difference, sign=True)}"
    if difference.better is not None:
        word = "Better" if difference.better else "Worse"
        p = probability(difference.p)
        return "good" if difference.better else "alarm", f"{word} than its base: {pair}, {size}{p and f', {p}'}, {on}."
    if ends(difference) is None:
        return "note", f"Too few examples to tell it from its base: {pair}, {on}."
    named = [evaluation.metrics[one].label for one in worse_metrics(run)]
    lead = "Not shown to be better than its base" + (f", and worse in {listed(named)}" if named else "")
    text = f"{lead}: {pair}, {size}, which chance alone may explain, {on}."
    return "note", text + would_show(difference, "This test set")


def would_show(difference: Difference, which: str) -> str:
    """Say which true difference some examples would show; "" where that is not known."""
    if difference.detectable is None:
        return ""
    least = plain(Estimate(difference.detectable, None, None, 0))
    return f" {which} would show a true difference of {least} or more in four of five tests."


def worse_metrics(run: RunRecords) -> dict[str, float]:
    """Return the metrics that got worse beyond chance, without the headline's own, with p adjusted over all.

    A change of confidence is told by rule calibrated-confidence, where it matters.
    """
    evaluation = run.evaluation
    differences = {
        metric: difference
        for metric, difference in evaluation.difference.items()
        if metric != run.headline_metric and evaluation.metrics[metric].kind != "calibration"
    }
    examples = {metric: evaluation.tuned[metric].n for metric in differences}
    return got_worse(differences, run.recipe.evaluation.resamples, examples)


class WorseMetrics(Rule):
    """Names every other metric that got worse beyond chance."""

    name = "worse-metrics"
    order = 11

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        for metric, p in worse_metrics(run).items():
            base, tuned, difference = evaluation.base[metric], evaluation.tuned[metric], evaluation.difference[metric]
            label = evaluation.metrics[metric].label
            figures = {"base": to_json(base), "tuned": to_json(tuned), "difference": to_json(difference)}
            yield Finding(
                kind="worse",
                level="note",
                text=f"{label[:1].upper()}{label[1:]} got worse: {against(tuned, base)}, a difference of "
                f"{told(difference, sign=True)}, adjusted {probability(p)}.",
                figures={"metric": metric, **figures, "p_adjusted": p},
            )


class HeldOutSplit(Rule):
    """Says what the held-out split itself leaves open: it is small, or it is the one that weights were chosen by."""

    name = "held-out-split"
    order = 17

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        metric, split = run.headline_metric, run.evaluation.split
        if metric is None:
            return
        figure, label = run.evaluation.tuned[metric], run.evaluation.metrics[metric].label
        if figure.n < SMALL_TEST:
            leave, carry = ("leaves", "carries") if figure.n == 1 else ("leave", "carry")
            between = interval(figure)
            rest = f" {leave} {label} anywhere from {between}." if between else f" {carry} no interval."
            text = f"The {split} split is small: {counted(figure.n, 'distinct example')}{rest}"
            yield Finding(kind="data", level="note", text=text, figures={"examples": figure.n})
        if split == "validation":
            yield Finding(
                kind="data",
                level="note",
                text="Figures are made on the validation split, as there is no test split"
                + (
                    ", and the same split chose which weights are kept: they are somewhat flattering."
                    if is_chosen(run)
                    else "; choices that were made by it (learning rate, epochs) make them flattering."
                ),
                figures={"split": split},
            )


def is_chosen(run: RunRecords) -> bool:
    """Say whether the validation split decided which weights are kept, the last ones included."""
    among_several = run.recipe.train.keep_best and len(run.validations) > 1
    by_regularizer = any(one.get("needs_validation") for one in run.training.regularizers)
    return bool(among_several or run.training.stopped_early or by_regularizer)
