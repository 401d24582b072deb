"""Rules about splits whose labels or answers have different sources."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ftengine import RunRecords
from ftengine.api import Finding, Level, Rule
from ftengine.evaluation import read_predictions
from ftengine.text import capitalized, counted, ends, has_value, listed, number, percent, quoted
from ftengine_builtins.audits.counting import share_within
from ftengine_builtins.audits.misplaced_labels import MisplacedLabels
from ftengine_builtins.audits.split_shift import EXPLAINED
from ftengine_builtins.label_fit import explains_the_rest, find_swap, one_grade_off
from ftengine_builtins.rules.fitting import falls_behind, seen_metric
from ftengine_builtins.rules.label_shares import shifted_label
from ftengine_builtins.rules.threshold import confusions

if TYPE_CHECKING:
    import numpy as np

LOSS, OF_LABELS = "loss", "nll"
"""Figures of the measured split that are comparable with a validation loss: of a token's loss, and of a label's. The
latter may be weighted otherwise in validation, so training rows have to be answered surely better as well."""

RATIO, FEWEST = 2.0, 20
"""How many times the validation loss that of the test split is where the two cannot be of one source, and the rows of
both below which nothing is said."""

ERRORS = 4.0
"""Standard errors of their difference by which they differ at least; the validation's is that of the test split by the
number of its rows."""


class ValidationAndTest(Rule):
    """Finds a test split on which the model is far worse than on validation, although neither was trained on."""

    name = "validation-and-test"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        tuned = evaluation.tuned.get(LOSS)
        if tuned is None and falls_behind(run, seen_metric(run)):
            tuned = evaluation.tuned.get(OF_LABELS)
        points = {point.step: point.validation_loss for point in run.validations}
        if evaluation.split != "test" or not points or tuned is None or (interval := ends(tuned)) is None:
            return
        held, rows = points.get(run.kept_step, list(points.values())[-1]), run.audit.splits["validation"].rows
        error = (interval[1] - interval[0]) / (2 * 1.96) * math.sqrt(1 + tuned.n / max(1, rows))
        if min(rows, tuned.n) < FEWEST or tuned.value < max(RATIO * held, held + ERRORS * error):
            return
        if any(set(leak["between"]) == {"train", "validation"} for leak in run.audit.facts.get("leaks", ())):
            return  # then it is the validation split that says nothing
        if shifted_label(run) is not None:
            return  # then it is training, and validation with it, that has other labels
        brief = "check that the test split is of the same source, its inputs and its answers: "
        brief += f"loss {number(tuned.value, 3)}, of the validation split {number(held, 3)}"
        yield Finding(
            kind="splits",
            level="alarm",
            text=f"{capitalized(brief)}.",
            brief=brief,
            explains=tuple(kind for kind in EXPLAINED if kind not in ("splits", "rows")),  # another may say why
            figures={"validation": held, "test": tuned},
        )


OPPOSITE = 0.2
"""Correlation of the base model's scores, interval's near end, below 0 on the one split and above it on the other."""
CORRELATIONS = ("spearman", "pearson")
TRIPLETS, HALF = "triplet_accuracy", 0.5
"""The share of triplets of which the positive is nearer than the negative, and what guessing gives."""
IN_PART, FEWER = 0.75, 0.15
"""That share in training, far end, below which some of its negatives are suspect, and by how much the measured split's,
near end, is larger then."""


class OppositeScores(Rule):
    """Finds scores that are distances, in all splits or in one of training and test.

    The base model, which was trained on neither, contradicts the scores of all splits, or of one.
    """

    name = "opposite-scores"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        evaluation = run.evaluation
        if evaluation.training is None:
            return
        for metric in CORRELATIONS:
            sides = evaluation.training.base.get(metric), evaluation.base.get(metric)
            if not all(has_value(side) and ends(side) is not None for side in sides):
                continue
            trained, held = sides
            shown = f"check which way scores run: the base model's {evaluation.metrics[metric].label} is "
            shown += f"{number(trained.value, 2)} on training rows and {number(held.value, 2)} on {evaluation.split} "
            shown += "rows, "
            if max(trained.high, held.high) <= -OPPOSITE:
                brief = f"{shown}as if scores were distances"
                text = f"{capitalized(brief)}. A score must grow with the similarity of a pair: invert all of them "
                text += "(1 minus the score, say) and train again."
            elif min(trained.high, held.high) <= -OPPOSITE < OPPOSITE <= max(trained.low, held.low):
                brief = f"{shown}as if one file had distances and the other similarities"
                text = f"{capitalized(brief)}. Invert the scores of one split (1 minus the score, say) and train again."
            else:
                continue
            figures = {"metric": metric, "training": trained, "held_out": held}
            explains = (*EXPLAINED, "labels")
            yield Finding(kind="splits", level="alarm", text=text, brief=brief, explains=explains, figures=figures)
            return


class NearNegatives(Rule):
    """Finds triplets whose negatives are nearer to their anchors than the positives, by the base model.

    If only training has them, its negatives are further positives, or columns are exchanged. If all splits have them,
    negatives may have been chosen to be hard: a note. So it is if a quarter to a half of the training triplets alone
    has them, unless the model got worse.
    """

    name = "near-negatives"
    order = 3

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        held, training = run.evaluation.base.get(TRIPLETS), run.evaluation.training
        trained = None if training is None else training.base.get(TRIPLETS)
        if (
            not has_value(held)
            or not has_value(trained)
            or ends(held) is None
            or ends(trained) is None
            or trained.high >= (IN_PART if held.low >= trained.high + FEWER else HALF)
        ):
            return
        brief = "check the negatives of training triplets: the base model finds them nearer to their anchors than the "
        brief += f"positives in {percent(1 - trained.value)} of training triplets and in {percent(1 - held.value)} of "
        brief += f"{run.evaluation.split} triplets"
        text = f"{capitalized(brief)}. They may answer their anchors as well, or positives and negatives are exchanged."
        figures, differ = {"training": trained, "held_out": held}, held.low > trained.high
        if trained.high >= HALF:  # negatives of training may have been chosen to be hard, which makes nothing worse
            change = run.evaluation.difference.get(TRIPLETS)
            differ = change is not None and (ends(change) or (0, 0))[1] < 0
        explains = (*EXPLAINED, "labels") if differ else ()
        level: Level = "alarm" if differ else "note"
        yield Finding(kind="splits", level=level, text=text, brief=brief, explains=explains, figures=figures)


class SwappedClasses(Rule):
    """Finds classes whose labels are exchanged or renumbered between training and the measured split.

    Audit `misplaced-labels` finds them by words before training; this rule by the tuned model's answers, so in images
    as well. The model has to be good on training rows and in the other classes: inputs of another source are answered
    wrongly in most classes.
    """

    name = "swapped-classes"
    order = 10

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        split, audited = run.evaluation.split, run.audit.findings
        if any(finding.source == MisplacedLabels.name and finding.figures.get("split") == split for finding in audited):
            return
        if not falls_behind(run, seen_metric(run)):
            return
        for names, counts in confusions(run):
            if (swap := find_swap(counts)) is None or not explains_the_rest(counts, swap):
                continue
            exchanged = [(names[i], names[j]) for i, j in swap.classes]
            if swap.is_exchange:
                brief = f"check whether labels are exchanged in the {split} split or in training: of {swap.n:,} rows, "
                brief += f"the tuned model answers {swap.fit:,} that are labelled "
                brief += listed([f"{quoted(label)} as {quoted(answer)}" for label, answer in exchanged])
            else:
                brief = f"check whether labels were numbered in each file by itself: in the {split} split "
                brief += listed([f"{quoted(label)} is training's {quoted(answer)}" for label, answer in exchanged])
                brief += f"; of {swap.n:,} rows, the tuned model answers {swap.fit:,} so"
            brief += f", and {swap.own:,} as they are labelled"
            figures = {"split": split, "swapped": exchanged, "fit": swap.fit, "own": swap.own, "n": swap.n}
            text = f"{capitalized(brief)}."
            finding = Finding(kind="splits", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)
            if grade := one_grade_off(counts, swap, names):
                text += f" Or are grades one {'higher' if grade > 0 else 'lower'} there?"
                finding = finding.model_copy(update={"level": "note", "explains": (), "text": text})
            yield finding
            return


PLACES, DISPLACED, FAR_BETTER = (-1, 1, -2, 2), 0.5, 2.0
"""Words by which tags are looked for before and behind their word, the share of tags that answers then meet at least,
and how many times as many as at their own words."""


class DisplacedTags(Rule):
    """Finds tags that are shifted by a word or two in one split: answers fit them once moved.

    The most frequent tag, that of ordinary words, does not count.
    """

    name = "displaced-tags"
    order = 0

    def judge(self, run: RunRecords) -> Iterator[Finding]:
        import numpy as np

        table = read_predictions(run.path, run.evaluation.split, "tuned") if run.evaluation.split else {}
        if not {"tags", "predicted_tags"} <= table.keys():
            return
        pairs = [tuple(map(np.asarray, pair)) for pair in zip(table["tags"], table["predicted_tags"], strict=True)]
        every = np.concatenate([tags for tags, _ in pairs])
        if not len(every):
            return
        usual = np.bincount(every - every.min()).argmax() + every.min()
        shares = {place: _met(pairs, place, usual) for place in (0, *PLACES)}
        best = max(PLACES, key=lambda place: shares[place][0])
        (own, n), (fit, _) = shares[0], shares[best]
        if n < FEWEST or share_within(round(fit * n), n)[0] < max(DISPLACED, FAR_BETTER * own):
            return
        split, words = run.evaluation.split, f"{counted(abs(best), 'word')} {'behind' if best > 0 else 'before'}"
        brief = (
            f"check whether tags belong to their words in training and in the {split} split: of {n:,} tags, answers "
        )
        brief += f"meet {percent(own)} at their words and {percent(fit)} {words} them"
        text = f"{capitalized(brief)}. Tags are shifted in one of the files; export them again."
        figures = {"split": split, "place": best, "fit": fit, "own": own, "n": n}
        yield Finding(kind="splits", level="alarm", text=text, brief=brief, explains=EXPLAINED, figures=figures)


def _met(pairs: Sequence[tuple[np.ndarray, np.ndarray]], place: int, usual: int) -> tuple[float, int]:
    """Return the share of tags that equal the answers this many words further on, and their number."""
    met = n = 0
    for tags, answers in pairs:
        moved = tags[max(0, -place) : len(tags) - max(0, place)], answers[max(0, place) : len(answers) + min(0, place)]
        tagged = moved[0] != usual
        n, met = n + int(tagged.sum()), met + int((moved[0] == moved[1])[tagged].sum())
    return met / max(1, n), n
