"""Rules about labels that are wrong, or written in several ways."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import numpy as np

from ftengine import RunRecords
from ftengine.api import Baseline, Finding, Rule
from ftengine.evaluation import near_end
from ftengine.text import counted, interval, listed, percent, plain, short_place, with_interval
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.label_noise import LabelNoise
from ftengine_builtins.audits.label_spellings import LabelSpellings
from ftengine_builtins.rules.fitting import seen_metric
from ftengine_builtins.rules.threshold import confusions, no_better_than_a_constant

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


class FlippedLabels(Rule):
    """Names rows whose label looks wrong, by the words of their texts or by the tuned model's confidence.

    Audit `label-noise` goes first, as words are not memorised. Where it says nothing (images, texts whose words do not
    predict the label), the model's doubts are used, as long as it has not memorised the wrong labels. They cannot tell
    wrong labels from ambiguous rows, so a person has to look at the places. Says nothing if the model has learnt
    nothing.
    """

    name = "flipped-labels"
    order = 4

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        noise = [finding for finding in run.audit.findings if finding.source == LabelNoise.name]
        yield from noise
        if no_better_than_a_constant(run):
            return
        text, figures = _worse_on_training(run)
        doubted = None if noise else _doubted(run)
        lead, places = "Look at the training labels, which may be wrong", ()
        if doubted is not None and doubted["low"] >= DOUBTED_SHARE:
            places, figures = tuple(doubted["places"]), {"doubted": doubted, **figures}
            lead = (
                f"Look at the labels of {', '.join(map(short_place, places[:3]))}: the tuned model is sure of another "
            )
            lead += f"one in {percent(doubted['value'])} (95 % interval {percent(doubted['low'])} to "
            lead += (
                f"{percent(doubted['high'])}) of {counted(doubted['n'], 'training row')}, and gives theirs less than "
            )
            lead += f"{percent(doubted['limit'])}"
        if places or text:
            yield Finding(
                kind="labels",
                level="alarm",
                text=f"{lead}.{text}",
                brief=f"{lead[:1].lower()}{lead[1:]}",
                explains=("quality",),
                figures=figures,
                places=places,
            )


def _doubted(run: RunRecords) -> dict[str, Any] | None:
    """Return the share of judged rows that the model contradicts, with a Wilson interval and their places.

    None if scores are no probabilities of labels, or if the model is never confident.
    """
    training = run.evaluation.training
    if training is None or training.judged is None:
        return None
    facts = run.evaluation.details.tuned.get(training.judged.evaluator, {})
    names, baseline = facts.get("labels"), Baseline.of(facts)
    judged = [row for row in training.judged.rows if row[0] is not None and row[1] is not None]
    if not names or not judged or any(not 0 <= score <= 1 for score, *_ in judged):
        return None
    # With several labels an example, each is a question of yes or no, and the score is the mean over them.
    labels = len(names) if baseline is not None and baseline.classes else 2
    limit = min(DOUBTED_SCORE, 1 / (2 * labels - 1))
    right = [score for score, is_right, _ in judged if is_right]
    if not right or median(right) < SURE:
        return None
    contradicted = sorted((row for row in judged if not row[1] and row[0] <= limit), key=lambda row: row[0])
    low, high = share_within(len(contradicted), len(judged))
    return {
        "value": len(contradicted) / len(judged),
        "low": low,
        "high": high,
        "n": len(judged),
        "limit": limit,
        "places": [place for *_, place in contradicted[:20]],
    }


def _worse_on_training(run: RunRecords) -> tuple[str, dict[str, Any]]:
    """Return a sentence if the model is worse on training examples than on new ones; else ""."""
    evaluation, metric = run.evaluation, seen_metric(run)
    if evaluation.training is None or metric is None or not evaluation.metrics[metric].higher_is_better:
        return "", {}
    old, new, gap = evaluation.training.tuned[metric], evaluation.tuned[metric], evaluation.training.gap.get(metric)
    if gap is None or gap.better is not False or near_end(gap) < WORSE_ON_TRAINING:
        return "", {}
    gap = gap.negated()
    text = f" The model does worse on training examples than on held-out ones: {evaluation.metrics[metric].label} "
    text += f"{plain(old)} ({interval(old)}) against {plain(new)} ({interval(new)}), a gap of {with_interval(gap)}."
    return text, {"metric": metric, "training": old, "held_out": new, "gap": gap}


CONFUSED = 0.02
"""Share of the held-out examples that are given another spelling of their label, interval's near end, for an alarm."""
OF_ERRORS = 0.25
"""The same of all errors, so that it is what a model lacks, not one of many things."""


class LabelSpellingsConfused(Rule):
    """Names labels that may be one label in several spellings, and how often the model confuses them."""

    name = "label-spellings"
    order = 4

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        noticed = [finding for finding in run.audit.findings if finding.source == LabelSpellings.name]
        counts = [_confused(run, list(finding.figures["spellings"])) for finding in noticed]
        if not noticed or any(cost is None for cost in counts):
            yield from (finding.model_copy(update={"source": ""}) for finding in noticed)
            return
        confused, (_, errors, total) = sum(cost[0] for cost in counts if cost), counts[0] or (0, 0, 0)
        groups = [listed(list(map(repr, finding.figures["spellings"]))) for finding in noticed]
        lead = f"write {' and '.join(groups[:2])} as one label{' each' if len(groups) > 1 else ''}: "
        are = "is" if confused == 1 else "are"
        lead += f"{confused:,} of {counted(total, 'held-out example')} {are} given another spelling of their label"
        costs = share_within(confused, total)[0] >= CONFUSED and confused >= OF_ERRORS * errors
        spellings = {name: n for finding in noticed for name, n in finding.figures["spellings"].items()}
        yield Finding(
            kind="labels",
            level="alarm" if costs else "note",
            text=f"{lead[:1].upper()}{lead[1:]}, which counts as an error. {noticed[0].text.partition(': ')[2]}",
            brief=lead,
            explains=("quality", "learning", "rows", "classes", "labels", "over-fitting", "calibration", "worse"),
            figures={"spellings": spellings, "confused": confused, "errors": errors, "total": total},
        )


def _confused(run: RunRecords, names: Sequence[str]) -> tuple[int, int, int] | None:
    """Return the number of examples answered with another of the given labels, of errors, and of all examples.

    None if no confusions were counted.
    """
    for labels, cells in confusions(run):
        if set(names) <= set(labels):
            of = [labels.index(name) for name in names]
            confused = int(cells[np.ix_(of, of)].sum() - cells[of, of].sum())
            return confused, int(cells.sum() - cells.trace()), int(cells.sum())
    return None
