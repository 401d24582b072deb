"""Is the tuned model better than its base, what got worse, and is its confidence earned?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ftengine.report.files import RunFiles
from ftengine.report.findings.chance import got_worse
from ftengine.report.findings.finding import Finding
from ftengine.report.words import (
    against,
    counted,
    interval,
    listed,
    metric_name,
    percent,
    plain,
    probability,
    quoted,
    with_interval,
)

SMALL_TEST = 100
"""Distinct examples below which a test set is called small: a 95 % interval of a proportion is then up to
20 points wide (1.96 · √(0.25 / 100) on each side)."""

NEVER_ALARM, LEAST_CLASS = 0.05, 5
"""Share of the held-out examples whose class is never answered, for an alarm; counted are classes of at least so many
examples, as a class of one or two is missed by a sound model as well."""

MOST_CLASSES = 5
"""Classes that a sentence names."""

CALIBRATION_NOTE = 0.05
"""Mean confidence minus accuracy that is worth a word, if its interval lies beyond on either side: 5 points."""

CALIBRATION_ALARM = 0.15
"""The same, interval above, from which too high a confidence misleads whoever relies on it."""


def headline(files: RunFiles) -> Finding:
    """Say whether the run is better than its base by the task's first metric."""
    metric, evaluation = files.headline_metric, files.evaluation
    if metric is None:
        return Finding(
            "quality", "note", "Nothing is known about quality: no examples were held out (data.validation, data.test)."
        )
    tuned, base = evaluation["tuned"][metric], evaluation.get("base", {}).get(metric)
    difference = evaluation.get("difference", {}).get(metric)
    name = metric_name(metric)
    on = f"on {counted(tuned['n'], 'distinct example')} of the {evaluation['split']} split"
    if tuned.get("value") is None:
        also = ", as is its base's" if base is not None and base.get("value") is None else ""
        text = f"Not a number: the tuned model's {name} is undefined {on}{also}."
        return Finding("quality", "alarm", text, {"metric": metric, "base": base, "tuned": tuned})
    if difference is None or base is None or difference.get("value") is None:
        return Finding("quality", "note", f"Not compared with its base: {name} {with_interval(tuned)} {on}.")
    figures = {"metric": metric, "base": base, "tuned": tuned, "difference": difference}
    pair = f"{name} {against(tuned, base)}"
    size = f"a difference of {with_interval(difference, sign=True)}"
    better = difference.get("better")
    if better is not None:
        word, level = ("Better", "good") if better else ("Worse", "alarm")
        p = probability(difference.get("p"))
        return Finding("quality", level, f"{word} than its base: {pair}, {size}{p and f', {p}'}, {on}.", figures)  # type: ignore[arg-type]
    if difference.get("low") is None or difference.get("high") is None:
        return Finding("quality", "note", f"Too few examples to tell it from its base: {pair}, {on}.", figures)
    named = [metric_name(one) for one in _got_worse(files)]
    lead = "Not shown to be better than its base" + (f", and worse in {listed(named)}" if named else "")
    text = f"{lead}: {pair}, {size}, which chance alone may explain, {on}."
    return Finding("quality", "note", text + would_show(difference, "This test set"), figures)


def would_show(difference: Mapping[str, Any], which: str) -> str:
    """Say which true difference some examples would show; "" where that is not known."""
    if difference.get("detectable") is None:
        return ""
    least = plain({"value": difference["detectable"]})
    return f" {which} would show a true difference of {least} or more in four of five tests."


def worse(files: RunFiles) -> Iterator[Finding]:
    """Name every other metric that got worse beyond chance."""
    for metric, p in _got_worse(files).items():
        difference = files.evaluation["difference"][metric]
        base, tuned, name = files.evaluation["base"][metric], files.evaluation["tuned"][metric], metric_name(metric)
        yield Finding(
            "worse",
            "note",
            f"{name[:1].upper()}{name[1:]} got worse: {against(tuned, base)}, a difference of "
            f"{with_interval(difference, sign=True)}, adjusted {probability(p)}.",
            {"metric": metric, "base": base, "tuned": tuned, "difference": difference, "p_adjusted": p},
        )


def _got_worse(files: RunFiles) -> dict[str, float]:
    """Return the metrics that got worse beyond chance, without the headline's own, with p adjusted over all."""
    differences = {
        metric: difference
        for metric, difference in files.evaluation.get("difference", {}).items()
        if metric != files.headline_metric and not _is_calibration(metric)
    }
    return got_worse(files, differences, {metric: files.evaluation["tuned"][metric]["n"] for metric in differences})


def trivial(files: RunFiles) -> Iterator[Finding]:
    """Compare a classifier with always giving the most frequent answer; a fresh head makes its base a low bar."""
    found = majority(files)
    accuracy = files.evaluation.get("tuned", {}).get("accuracy")
    if found is None or accuracy is None:
        return
    label, share = found
    figures = {"label": label, "share": share, "tuned": accuracy}
    if share == 1:
        text = f"The {files.evaluation['split']} split holds one class only ({quoted(label)}): accuracy here says "
        yield Finding("baseline", "note", f"{text}nothing of the others.", figures)
        return
    if accuracy.get("low") is None:
        return
    always = f"always answering {quoted(label)} would be right in {percent(share)}"
    if no_better_than_a_constant(files):
        yield Finding(
            "baseline",
            "alarm",
            f"Not shown to be better than a constant answer: accuracy is {with_interval(accuracy)}, and {always}.",
            figures,
        )
    elif files.facts.get("new_modules"):
        yield Finding(
            "baseline",
            "note",
            "The base's classification head was fresh and had learnt nothing, so its figures are those of guessing. "
            f"A fairer bar: {always}; accuracy is {with_interval(accuracy)}.",
            figures,
        )


def no_better_than_a_constant(files: RunFiles) -> bool:
    """Say whether a classifier is not shown to be better than always giving the most frequent answer.

    Where all held-out examples are of one class, none can be better, and nothing is said.
    """
    found, accuracy = majority(files), files.evaluation.get("tuned", {}).get("accuracy") or {}
    return found is not None and accuracy.get("low") is not None and accuracy["low"] <= found[1] < 1


def unanswered(files: RunFiles) -> Iterator[Finding]:
    """Name the classes that the tuned model never gives as its answer, though held-out examples have them."""
    found = class_counts(files)
    if found is None:
        return
    names, supports, answers = found
    total = sum(supports)
    never = [i for i in range(len(names)) if supports[i] and not answers[i]]
    if not never:
        return
    large = sum(supports[i] for i in never if supports[i] >= LEAST_CLASS)
    missed, most = sum(supports[i] for i in never), max(range(len(names)), key=answers.__getitem__)
    shown = [quoted(names[i]) for i in never[:MOST_CLASSES]]
    if len(never) > MOST_CLASSES:
        shown.append(counted(len(never) - MOST_CLASSES, "other class", "other classes"))
    yield Finding(
        "classes",
        "alarm" if large >= NEVER_ALARM * total else "note",
        f"Never answers {listed(shown)}, the truth of {missed:,} of {total:,} held-out examples; "
        f"{quoted(names[most])} is its answer to {answers[most]:,}.",
        {"never": [names[i] for i in never], "examples": missed, "total": total, "most": names[most]},
    )


def majority(files: RunFiles) -> tuple[str, float] | None:
    """Return the most frequent true label of the held-out split and its share, where there is one label an example."""
    found = class_counts(files)
    if found is None:
        return None
    names, supports, _ = found
    most = max(range(len(supports)), key=supports.__getitem__)
    return names[most], supports[most] / sum(supports)


def class_counts(files: RunFiles, evaluator: str | None = None) -> tuple[list[str], list[int], list[int]] | None:
    """Return the labels, how often each is the truth, and how often it is the tuned model's answer.

    Of a confusion matrix, or of the labels' own rows where there are too many for one. None where an example may have
    several labels, as shares of the examples mean something else then.

    Args:
        evaluator: the one whose details are read; by default the first that has such counts.
    """
    for name, details in files.evaluation.get("details", {}).get("tuned", {}).items():
        matrix, labels = details.get("confusion"), details.get("labels")
        if not labels or evaluator not in (None, name):
            continue
        if matrix and len(matrix) == len(labels):
            supports, answers = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
        elif "accuracy" in files.evaluation["tuned"] and all("support" in row and "predicted" in row for row in labels):
            supports, answers = [row["support"] for row in labels], [row["predicted"] for row in labels]
        else:
            continue
        if sum(supports):
            return [str(row["label"]) for row in labels], supports, answers
    return None


def calibration(files: RunFiles) -> Iterator[Finding]:
    """Say whether the tuned model's confidence can be believed."""
    # A mean, whose interval holds the truth; calibration errors have none (see evaluator calibration).
    tuned = files.evaluation.get("tuned", {}).get("overconfidence") or {}
    low, high = tuned.get("low"), tuned.get("high")
    if low is None or high is None or (low < CALIBRATION_NOTE and high > -CALIBRATION_NOTE):
        return
    over = low >= CALIBRATION_NOTE
    leaning, direction = ("It is too sure of itself", "high") if over else ("It is less sure than it could be", "low")
    text = (
        f"{leaning}: its confidence is {abs(100 * tuned['value']):.0f} points too {direction} on average (mean "
        f"confidence minus accuracy {with_interval(tuned, sign=True)})."
    )
    temperature = _temperature(files)
    own = files.evaluation["tuned"]
    before, after = own.get("ece") or {}, own.get("ece_after_temperature") or {}
    known = None not in (before.get("value"), after.get("value"))
    if temperature and known and (temperature > 1) == over and after["value"] < before["value"]:
        text += (
            f" Dividing its logits by {temperature:.2f} (fitted on validation) would bring the calibration error from "
            f"{plain(before)} to {plain(after)}."
        )
    figures = {
        "metric": "overconfidence",
        "base": files.evaluation.get("base", {}).get("overconfidence"),
        "tuned": tuned,
        "difference": files.evaluation.get("difference", {}).get("overconfidence"),
        "temperature": temperature,
    }
    yield Finding("calibration", "alarm" if low >= CALIBRATION_ALARM else "note", text, figures)


def calibration_details(evaluation: Mapping[str, Any], side: str) -> dict[str, Any] | None:
    """Return the details that hold reliability bins, of "base" or "tuned"."""
    for details in evaluation.get("details", {}).get(side, {}).values():
        if isinstance(details, dict) and details.get("bins"):
            return details
    return None


def _temperature(files: RunFiles) -> float | None:
    details = calibration_details(files.evaluation, "tuned")
    value = (details or {}).get("temperature")
    return float(value) if isinstance(value, (int, float)) else None


def _is_calibration(metric: str) -> bool:
    """Say whether a metric is of confidence: its change is told by `calibration`, where it matters."""
    return metric in ("overconfidence", "ece", "calibration_error", "ece_after_temperature")


def held_out(files: RunFiles) -> Iterator[Finding]:
    """Say what the held-out split itself leaves open."""
    metric, split = files.headline_metric, files.evaluation.get("split")
    if metric is None:
        return
    figure = files.evaluation["tuned"][metric]
    if figure["n"] < SMALL_TEST:
        ends = interval(figure)
        leave, carry = ("leaves", "carries") if figure["n"] == 1 else ("leave", "carry")
        yield Finding(
            "data",
            "note",
            f"The {split} split is small: {counted(figure['n'], 'distinct example')}"
            + (f" {leave} {metric_name(metric)} anywhere from {ends}." if ends else f" {carry} no interval."),
            {"examples": figure["n"]},
        )
    if split == "validation":
        chosen = is_chosen(files)
        yield Finding(
            "data",
            "note",
            "Figures are made on the validation split, as there is no test split"
            + (
                ", and the same split chose which weights are kept: they are somewhat flattering."
                if chosen
                else "; choices that were made by it (learning rate, epochs) make them flattering."
            ),
            {"split": split},
        )


def is_chosen(files: RunFiles) -> bool:
    """Say whether the validation split decided which weights are kept, the last ones included."""
    training = files.training
    among_several = files.recipe.get("train", {}).get("keep_best", True) and len(files.validations) > 1
    by_regularizer = any(one.get("needs_validation") for one in training.get("regularizers") or [])
    return bool(among_several or training.get("stopped_early") or by_regularizer)
