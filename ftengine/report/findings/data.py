"""What the data does to the result: leaks, duplicates, contradictions, wrong labels, personal data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from ftengine.evaluation.intervals import CONFIDENCE
from ftengine.report.files import RunFiles
from ftengine.report.findings.finding import Finding
from ftengine.report.findings.fitting import difference_of_independent
from ftengine.report.findings.quality import class_counts, is_chosen, no_better_than_a_constant
from ftengine.report.words import counted, interval, listed, metric_name, percent, plain, quoted, short_place, with_interval

LEAK_SHARE = 0.01
"""Share of a held-out split that is nearly in training, from which it is an alarm: fewer rows move no figure by more
than a point. A row that is there word for word is one always, where figures are made on it."""

DUPLICATES_NOTE, DUPLICATES_ALARM = 0.05, 0.5
"""Share of training rows that repeat another. From a half on, the set is less than half of what it looks like."""

CONTRADICTIONS_ALARM = 0.02
"""Share of rows whose text also stands there with another label, from which it is an alarm."""

DOUBTED_SCORE = 0.2
"""Probability that the tuned model leaves the given label, while it prefers another, below which it contradicts it.
With K labels at most 1/(2K - 1): some other label is then at least twice as probable, whatever the rest share."""

SURE = 0.6
"""Probability that the model gives a label when it is right, in the middle of such rows, from which it has learnt
enough for its doubts to mean something. A model that learnt nothing gives each of K labels about 1/K."""

DOUBTED_SHARE = 0.05
"""Share of training rows that the model contradicts, at the interval's near end, for an alarm. LoRA on MiniLM, 306 BBC
news texts, three epochs: 2 % of 200 rows with the labels as they are, 11.5 % with a fifth of them flipped (the others
of the flipped ones are learnt or doubted less)."""

WORSE_ON_TRAINING = 0.05
"""Points by which a model may do worse on what it was trained on than on what is new, interval's near end; beyond,
the training labels are worse than the held-out ones."""


def leaks(files: RunFiles) -> Iterator[Finding]:
    """Say which held-out rows, or whose groups, were trained on as well."""
    for leak in files.audit.get("leaks") or []:
        known, held = leak["between"]
        exact, near, groups = leak.get("count", 0), leak.get("near", 0), leak.get("groups", 0)
        if leak.get("dropped") or not exact + near + groups:
            continue
        rows = files.audit["splits"][held]["rows"] or 1
        used = held == files.evaluation.get("split")
        first = "training" if known == "train" else known
        told = []
        if exact + near:
            parts = [f"{count:,} {how}" for count, how in ((exact, "word for word"), (near, "nearly so")) if count]
            stand = "stands" if exact + near == 1 else "stand"
            told.append(f"of the {rows:,} {held} rows, {listed(parts)} {stand} in the {first} split too")
        if groups:
            column = ((files.recipe.get("data") or {}).get("split") or {}).get("column")
            are = "value of column {} is" if groups == 1 else "values of column {} are"
            told.append(f"{groups:,} {are.format(quoted(column))} in the {first} and in the {held} split")
        serious = known == "train" and ((used and exact + groups) or exact + near > LEAK_SHARE * rows)
        yield Finding(
            "data",
            "alarm" if serious else "note",
            f"Leak: {', and '.join(told)} (e.g. {short_place(leak['places'][0])}). " + _consequence(files, known, used=used),
            {"between": leak["between"], "exact": exact, "near": near, "groups": groups, "rows": rows},
        )


def _consequence(files: RunFiles, known: str, *, used: bool) -> str:
    if known != "train":
        chose = "Validation chose the weights" if is_chosen(files) else "Choices are made by validation"
        return f"{chose}, so that figures on them are somewhat flattering."
    return "Figures on them say nothing about new data." if used else "The weights were chosen by them."


def duplicates(files: RunFiles) -> Iterator[Finding]:
    """Say how much of the training split repeats itself."""
    split = (files.audit.get("splits") or {}).get("train") or {}
    rows = split.get("rows") or 0
    exact, near = split.get("duplicates") or 0, split.get("near_duplicates") or 0
    share = (exact + near) / rows if rows else 0.0
    if share < DUPLICATES_NOTE:
        return
    also = f" and {near:,} nearly repeat one" if near else ""
    yield Finding(
        "data",
        "alarm" if share >= DUPLICATES_ALARM else "note",
        f"Of the {rows:,} training rows, {exact:,} repeat another word for word{also} ({percent(share)}): the set is "
        "smaller than it looks.",
        {"rows": rows, "duplicates": exact, "near_duplicates": near, "share": share},
    )


def contradictions(files: RunFiles) -> Iterator[Finding]:
    """Say how many texts stand in the data with two labels."""
    splits = files.audit.get("splits") or {}
    found, rows = (splits.get("train") or {}).get("contradictions"), (splits.get("train") or {}).get("rows") or 0
    if not found:  # counted over all splits together
        found, rows = files.audit.get("contradictions"), sum(split.get("rows") or 0 for split in splits.values())
    if not found or not found.get("rows") or not rows:
        return
    share = found["rows"] / rows
    where = f" (e.g. {short_place(found['places'][0])})" if found.get("places") else ""
    yield Finding(
        "labels",
        "alarm" if share >= CONTRADICTIONS_ALARM else "note",
        f"Contradicting labels: {counted(found['texts'], 'text')} {'has' if found['texts'] == 1 else 'have'} more than "
        f"one label, in {counted(found['rows'], 'row')} ({percent(share)}){where}. One of each must be wrong.",
        {"texts": found["texts"], "rows": found["rows"], "share": share},
    )


def wrong_labels(files: RunFiles) -> Iterator[Finding]:
    """Find flipped training labels: rows whose label the tuned model confidently contradicts.

    Sees them only while the model has not learnt them by heart, and cannot tell them from rows that are truly
    ambiguous: the places are for a person to look at. Says nothing by a model that has learnt nothing itself.
    """
    if no_better_than_a_constant(files):
        return
    measured = files.evaluation.get("training") or {}
    worse = _worse_on_training(files, measured.get("tuned") or {})
    limit = _limit(files, measured.get("judged") or {})
    doubted = None if limit is None else _doubted(measured["judged"]["rows"], limit)
    if doubted is not None and doubted["low"] >= DOUBTED_SHARE:
        places = ", ".join(short_place(place) for place in doubted["places"][:3])
        yield Finding(
            "labels",
            "alarm",
            f"Labels may be flipped: of {counted(doubted['n'], 'training example')}, {percent(doubted['value'])} carry "
            f"a label to which the tuned model gives less than {percent(doubted['limit'])}, and another one at least "
            f"twice as much (95 % interval {percent(doubted['low'])} to {percent(doubted['high'])}). Look at {places}."
            + (worse[0] if worse else ""),
            {"doubted": doubted, **(worse[1] if worse else {})},
        )
    elif worse is not None:
        yield Finding("labels", "alarm", f"Training labels may be wrong.{worse[0]}", worse[1])


def _limit(files: RunFiles, judged: Mapping[str, Any]) -> float | None:
    """Return the probability below which a label is contradicted; None where what judges knows no labels."""
    evaluator = judged.get("evaluator")
    details = files.evaluation.get("details", {}).get("tuned", {}).get(evaluator) or {}
    if not details.get("labels"):
        return None
    # With several labels an example, each is a question of yes or no, and the score is the mean over them.
    labels = len(details["labels"]) if class_counts(files, evaluator) else 2
    return min(DOUBTED_SCORE, 1 / (2 * labels - 1))


def _doubted(rows: list[list[Any]], limit: float) -> dict[str, Any] | None:
    """Return the share of judged rows that the model contradicts, with a Wilson interval and their places.

    None where scores are no probabilities, or where the model is not sure of anything.
    """
    judged = [row for row in rows if row[1] is not None and row[0] is not None]
    if not judged or any(not 0 <= score <= 1 for score, *_ in judged):
        return None
    right = [score for score, is_right, *_ in judged if is_right]
    if not right or median(right) < SURE:
        return None
    from scipy.stats import binomtest

    found = sorted((row for row in judged if not row[1] and row[0] <= limit), key=lambda row: row[0])
    ends = binomtest(len(found), len(judged)).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "value": len(found) / len(judged),
        "low": float(ends.low),
        "high": float(ends.high),
        "n": len(judged),
        "limit": limit,
        "places": [str(row[2]) for row in found[:20]],
    }


def _worse_on_training(files: RunFiles, seen: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    metric = files.headline_metric
    if metric is None or metric not in seen or not files.higher_is_better(metric):
        return None
    known, new = seen[metric], files.evaluation["tuned"][metric]
    if None in (known.get("low"), known.get("high"), new.get("low"), new.get("high")):
        return None
    gap = difference_of_independent(new, known)
    if gap["low"] < WORSE_ON_TRAINING:
        return None
    text = (
        f" The model does worse on what it was trained on: {metric_name(metric)} {plain(known)} ({interval(known)}) "
        f"there, {plain(new)} ({interval(new)}) on held-out examples, {with_interval(gap)} apart."
    )
    return text, {"metric": metric, "training": known, "held_out": new, "gap": gap}


def personal(files: RunFiles) -> Iterator[Finding]:
    """Say what looks like personal data in the training split."""
    kinds = (files.audit.get("personal") or {}).get("train") or {}
    found = {kind: what["count"] for kind, what in kinds.items() if what.get("count")}
    if found:
        names = ", ".join(f"{count:,} × {kind.replace('_', ' ')}" for kind, count in found.items())
        yield Finding(
            "data",
            "note",
            f"The training text holds what looks like personal data: {names}. A model may give back what it was "
            "trained on.",
            {"found": found},
        )


def truncated(files: RunFiles) -> Iterator[Finding]:
    """Say where most training examples were cut to the length limit."""
    encoded = (files.audit.get("encoded") or {}).get("train") or {}
    count, examples = encoded.get("truncated") or 0, encoded.get("examples") or 0
    if examples and count > examples / 2:
        yield Finding(
            "data",
            "note",
            f"{percent(count / examples)} of the training examples are longer than the limit of "
            f"{encoded.get('longest')} and were cut: the model never saw their ends (task.max_length).",
            {"truncated": count, "examples": examples},
        )
